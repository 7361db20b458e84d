"""Data sets and the views made of them."""

from clipviz.data.base import Batch, ImageDataset, Skipped, ViewConfig, Views
from clipviz.data.batches.features import FeatureDataset
from clipviz.data.batches.loader import ViewLoader, as_images, eval_batches
from clipviz.data.images.pixel_cache import DiskCache
from clipviz.data.images.views import eval_parts, eval_view, make_views
from clipviz.data.sources.image_files import ImageFolderDataset
from clipviz.data.sources.load import load_dataset
from clipviz.events import UNLABELLED

__all__ = ["UNLABELLED", "Batch", "DiskCache", "FeatureDataset", "ImageDataset", "ImageFolderDataset", "Skipped",
           "ViewConfig", "ViewLoader", "Views", "as_images", "eval_batches", "eval_parts", "eval_view",
           "load_dataset", "make_views"]  # fmt: skip
