"""The loop, the run that drives it and what is kept of it."""
