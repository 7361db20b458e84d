"""Measurements: speed, accuracy, saliency. Never part of the tests; results live in benchmarks/results."""
