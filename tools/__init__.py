"""How what the package brings along was made; not part of the package."""
