"""Any open_clip model behind one face: its image tower, its texts, its weights."""

from clipviz.backbone.model import Backbone, ImageTokens, load_backbone, load_tokenizer, usable_device

__all__ = ["Backbone", "ImageTokens", "load_backbone", "load_tokenizer", "usable_device"]
