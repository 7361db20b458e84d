"""Data sets and the views made of them."""

from clipviz.data.base import UNLABELLED, Batch, ImageDataset, Skipped, ViewConfig, Views
from clipviz.data.batches.features import FeatureDataset
from clipviz.data.batches.loader import ViewLoader, as_images, eval_batches
from clipviz.data.images.pixel_cache import DiskCache
from clipviz.data.images.views import eval_parts, eval_view, make_views
from clipviz.data.sources.image_files import ImageFolderDataset
from clipviz.data.sources.load import load_dataset
