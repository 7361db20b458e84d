"""The record of a run: tidy tables, named arrays and one JSON of facts; no torch."""

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
    "empty_table",
    "is_by_epoch",
    "storable_text",
]
