"""The embedded default: a procedural world of birds, its language, and the small CLIP pretrained on it."""
