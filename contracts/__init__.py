"""What two rooms of Stride must agree on, and nothing else.

Depends on numpy, Pillow and pydantic only. Import the modules, not this package: it holds nothing itself.
"""
