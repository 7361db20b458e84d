"""Data sets and the views made of them."""

from clipviz.data.base import UNLABELLED, Batch, ImageDataset, Skipped, ViewConfig, Views
from clipviz.data.features import FeatureDataset
from clipviz.data.folder import ImageFolderDataset
from clipviz.data.loader import ViewLoader, as_images, eval_batches
from clipviz.data.loading import load_dataset
from clipviz.data.pixel_cache import DiskCache
from clipviz.data.views import eval_parts, eval_view, make_views

__all__ = [
    "UNLABELLED",
    "Batch",
    "DiskCache",
    "FeatureDataset",
    "ImageDataset",
    "ImageFolderDataset",
    "Skipped",
    "ViewConfig",
    "ViewLoader",
    "Views",
    "as_images",
    "eval_batches",
    "eval_parts",
    "eval_view",
    "load_dataset",
    "make_views",
]
