"""The record of a run: tidy tables, named arrays and one JSON of facts; no torch."""

from clipviz.trace.folder import FORMAT_VERSION
from clipviz.trace.measures import calibration_bins, calibration_error, label_accuracy, last_value, named_classes
from clipviz.trace.schema import TABLES, ImageGroup
from clipviz.trace.tables import Trace, empty_table, is_by_epoch, storable_text
from clipviz.trace.tags import Tags

__all__ = ["FORMAT_VERSION", "TABLES", "ImageGroup", "Tags", "Trace", "calibration_bins", "calibration_error",
           "empty_table", "is_by_epoch", "label_accuracy", "last_value", "named_classes", "storable_text"]  # fmt: skip
