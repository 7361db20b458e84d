"""Traces that are well-formed and signed, and hold what no run writes: each column, array and fact with each fault."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
from synthetic import synthetic_trace

from clipviz.trace import Trace
from clipviz.trace.schema import META, TABLES

N_CLASSES = 3


class Mutant(NamedTuple):
    """A fault, and the one file that it changes."""

    fault: str
    file: str
    content: bytes


def complete_trace() -> Trace:
    """A small trace that has all that a trace can hold."""
    trace = synthetic_trace(N_CLASSES, epochs=2, n_images=8, n_eval=6, n_probe=2)
    rng = np.random.default_rng(0)
    g, n = len(trace.highlights.images), len(trace.sources.index)
    for prefix, size in (("probe", 96), ("gallery", 96)):
        for name in ("images", "parts"):  # a few pixels are drawn faster
            trace.arrays[f"{prefix}/{name}"] = trace.arrays[f"{prefix}/{name}"][:, :size:12, :size:12].copy()
    trace.arrays |= {
        "gallery/cls_attention": rng.random((g, 2, 2), np.float32),
        "examples/images": trace.arrays["examples/images"][:, ::8, ::8].copy(),
        "cache/labels": rng.integers(0, N_CLASSES, (g, 2)),
        "cache/index": rng.integers(0, n, (g, 2)),
        "cache/votes": rng.random((g, 2), np.float32),
        "cache/images": rng.integers(0, 255, (g, 2, 4, 4, 3)).astype(np.uint8),
        "embeddings/images": rng.normal(size=(3, 4, 32)).astype(np.float16),
        "embeddings/index": np.arange(4),
        "embeddings/target": np.zeros(4, int),
        "sources/crop_similarity": rng.random((n, 4), np.float32),
        "sources/crop_logits": rng.random((n, 4, N_CLASSES), np.float32),
        "sources/crop_gram": rng.random((n, 4, 4), np.float32),
    }
    trace.skipped = pd.DataFrame({"path": ["a.png"], "reason": ["no image"]})
    trace.meta |= {
        "accuracy_is": "transductive",
        "label": "mine",
        "changes": [{"step": 3, "gamma": 0.4}],
        "files": {"learned": ["a.png"] * 8, "measured": ["b.png"] * 6},
        "gallery_sentences": [[0, 1, "it is red", 0.3], [1, 0, "it is blue", 0.2]],
        "zero_shot_accuracy": 0.5,
    }
    return trace


def signed(files: dict[str, bytes]) -> bytes:
    """The manifest of some files."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return json.dumps({"format": "clipviz-trace", "format_version": 1, "files": hashes}).encode()


def mutants(trace: Trace) -> Iterator[Mutant]:
    """Every fault of every table, array and fact of a trace."""
    for name in TABLES:
        for fault, table in _tables(getattr(trace, name)):
            yield Mutant(f"{name}: {fault}", f"{name}.parquet", _parquet(table))
    for fault, arrays in _array_faults(trace.arrays):
        yield Mutant(fault, "arrays.safetensors", safetensors.numpy.save(arrays))
    for fault, meta in _meta_faults(trace.meta):
        yield Mutant(fault, "meta.json", meta)


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _filled(value: Any, kind: pa.DataType | None = None) -> Callable[[pa.ChunkedArray], pa.Array]:
    return lambda column: pa.array([value] * len(column), kind)


def _first(value: Any) -> Callable[[pa.ChunkedArray], pa.Array]:
    return lambda column: pa.array([value, *column.to_pylist()[1:]])


COLUMN_FAULTS: dict[str, Callable[[pa.ChunkedArray], pa.Array]] = {
    "text": _filled("x"),
    "empty text": _filled(""),
    "orders": _filled("\x1b[2J\u202e<b>\n"),
    "bytes": _filled(b"\xff"),
    "null": _filled(None),
    "bool": _filled(True),
    "lists": _filled([1, 2]),
    "objects": _filled({"a": 1}),
    "times": _filled(5, pa.timestamp("ns")),
    "decimals": _filled(1, pa.decimal128(5)),
    "NaN": _filled(float("nan")),
    "inf": _filled(float("inf")),
    "-inf": _filled(float("-inf")),
    "half": _filled(0.5),
    "-1": _filled(-1),
    "-2": _filled(-2),
    "the number of classes": _filled(N_CLASSES),
    "thousands": _filled(12_345),
    "a large number": _filled(2**31 - 1),
    "a huge number": _filled(2**62),
    "unsigned": _filled(2**64 - 1, pa.uint64()),
    "small": _filled(0, pa.int8()),
    "half precision": lambda column: pa.array(np.full(len(column), 0.5, np.float16)),
    "categories": lambda column: pa.array(["a"] * len(column)).dictionary_encode(),
    "a null among them": lambda column: pa.array([None, *column.to_pylist()[1:]]),
    "a large one among them": lambda column: _first(99)(column) if pa.types.is_integer(column.type) else column,
    "a negative among them": lambda column: _first(-3)(column) if pa.types.is_integer(column.type) else column,
}


def _tables(frame: pd.DataFrame) -> Iterator[tuple[str, pa.Table]]:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    yield "no rows", table[:0]
    yield "one row", table[:1]
    yield "twice", pa.concat_tables([table, table])
    yield "no columns", table.select([])
    yield "an index", pa.Table.from_pandas(frame.set_index(frame.columns[0]))
    yield "other columns", table.rename_columns([f"{name}_label" for name in table.column_names])
    yield "one more", table.append_column("x_label", pa.array([0] * len(table)))
    yield "a strange one more", table.append_column("\x1b_label\n", pa.array(["x"] * len(table)))
    for i, name in enumerate(table.column_names):
        yield f"{name} missing", table.drop_columns([name])
        yield f"{name} twice", table.append_column(name, table[name])
        yield f"{name} of no rows and another type", table[:0].set_column(i, name, pa.array([], pa.string()))
        for fault, change in COLUMN_FAULTS.items():
            yield f"{name} {fault}", table.set_column(i, name, change(table[name]))


ARRAY_FAULTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as float": lambda a: a.astype(np.float64),
    "as half": lambda a: a.astype(np.float16),
    "as int32": lambda a: np.nan_to_num(a).astype(np.int32),
    "as uint16": lambda a: np.nan_to_num(a).astype(np.uint16),
    "as bool": lambda a: a.astype(bool),
    "NaN": lambda a: np.full(a.shape, np.nan, np.float32),
    "inf": lambda a: np.full(a.shape, np.inf, np.float32),
    "zero": np.zeros_like,
    "-1": lambda a: np.full(a.shape, -1),
    "-2": lambda a: np.full(a.shape, -2),
    "the number of classes": lambda a: np.full(a.shape, N_CLASSES),
    "huge": lambda a: np.full(a.shape, 2**62),
    "unsigned huge": lambda a: np.full(a.shape, 2**64 - 1, np.uint64),
    "a number": lambda a: np.array(a.reshape(-1)[0]),
    "flat": lambda a: a.reshape(-1),
    "one axis more": lambda a: a[None],
    "turned": lambda a: np.ascontiguousarray(a.T),
    "empty": lambda a: a[:0],
    "empty at the end": lambda a: np.ascontiguousarray(a[..., :0]),
    "one less": lambda a: a[:-1],
    "one less at the end": lambda a: np.ascontiguousarray(a[..., :-1]),
    "twice": lambda a: np.concatenate([a, a]),
    "only one": lambda a: a[:1],
}


def _array_faults(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    yield "no arrays", {}
    for name, array in arrays.items():
        without = {other: value for other, value in arrays.items() if other != name}
        yield f"{name} missing", without
        yield f"{name} under a strange name", {**without, f"{name.split('/')[0]}/\x1b <b>/\n": array}
        yield f"{name} alone", {name: array}
        for fault, change in ARRAY_FAULTS.items():
            yield f"{name} {fault}", {**without, name: change(array)}


def _nested(depth: int) -> Any:
    value: Any = 1
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


FACTS: dict[str, Any] = {
    "null": None, "true": True, "zero": 0, "-1": -1, "a half": 0.5, "a long number": 10**400, "a large number": 2**62,
    "text": "x", "no text": "", "orders": "\x1b[2J\u202e<b>\n\ud800", "no list": [], "no object": {},
    "a list of null": [None], "a list of numbers": [1, 2], "a list of text": ["a", "\ud800"], "lists": [[1, 2], []],
    "objects": [{"a": 1}], "an object": {"a": 1, "method": {"gamma": "x"}}, "nested": _nested(20), "deep": _nested(400),
    "strange objects": {"method": [1], "learned": "abc", "measured": {"0": 1}}, "strange rows": [[0, "x", 1, None]],
    "rows outside": [[0, 99, "x", 0.1], [-5, -7, "x", 0.1]], "learned": {"learned": [1], "measured": [None, 2]},
    "settings": {"method": {"gamma": 10**300, "crop_temperature": True, "a": [[1]]}, "schedule": None},
}  # fmt: skip


def _meta_faults(meta: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    yield "no facts", b"{}"
    yield "no JSON", b"{"
    yield "deep", b"[" * 200_000 + b"]" * 200_000
    yield "deep in a fact", json.dumps(meta)[:-1].encode() + b', "x": ' + b"[" * 900 + b"]" * 900 + b"}"
    for number in ("NaN", "Infinity", "1e999", "9" * 5000):
        yield f"{number[:9]} in a fact", json.dumps(meta)[:-1].encode() + b', "seconds": ' + number.encode() + b"}"
    for key in dict.fromkeys([*META, *meta]):
        yield f"{key} missing", json.dumps({other: value for other, value in meta.items() if other != key}).encode()
        for fault, value in FACTS.items():
            yield f"{key} {fault}", json.dumps({**meta, key: value}).encode()
