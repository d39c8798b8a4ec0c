"""The contenders. Each runs as a process of its own: Stride and the bare step in the product's environment, the others
in that of requirements.txt, which holds nothing of Stride."""
