"""The fit against what a user would pick instead: `stride bench train` runs it, RESULTS.md holds what came out."""
