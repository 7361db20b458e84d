"""Pixels: decoding, views, the cache."""
