"""The record of a run: tidy tables, named arrays and one JSON of facts; no torch."""

from clipviz.trace.measures import calibration_bins, calibration_error, label_accuracy
from clipviz.trace.tables import (
    FORMAT_VERSION,
    TABLES,
    Trace,
    empty_table,
    is_by_epoch,
    storable_text,
)

__all__ = [
    "FORMAT_VERSION",
    "TABLES",
    "Trace",
    "calibration_bins",
    "calibration_error",
    "empty_table",
    "is_by_epoch",
    "label_accuracy",
    "storable_text",
]
