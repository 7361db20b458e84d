"""The record of a run: tidy tables, named arrays and one dictionary of metadata. Nothing here needs torch.

A trace on disk is a folder::

    manifest.json        {"format": "clipviz-trace", "format_version": 1, "files": {name: sha256}}
    meta.json            method, model, data, class names, settings, versions, ...
    <table>.parquet      steps, samples, epochs, predictions, skipped
    arrays.safetensors   probe/..., snapshot/..., sources/..., gallery/..., exploration/...

`clipviz.trace.folder` writes and reads the folder, whole or not at all. No format here can hold a pickle.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from clipviz.errors import inert, parse_json, path_text
from clipviz.files import is_locked
from clipviz.trace import schema
from clipviz.trace.folder import FORMAT_VERSION, Refused, parse, read_folder, write_folder
from clipviz.trace.schema import DTYPES, TABLES, ImageGroup, image_group, under

T = TypeVar("T")

_FOLLOWED = ("probe/images", "probe/index", "probe/target", "probe/parts")
"""Arrays of the probe that are the same at every epoch."""

_META = "meta.json"
_ARRAYS = "arrays.safetensors"
_FILES = frozenset({_META, _ARRAYS} | {f"{table}.parquet" for table in TABLES})


_EMPTY = {
    name: pd.DataFrame({column: pd.Series(dtype=DTYPES[kind]) for column, kind in columns.items()})
    for name, columns in TABLES.items()
}


def empty_table(name: str) -> pd.DataFrame:
    """Table `name` of `TABLES` without rows, with its required columns and their types."""
    return _EMPTY[name].copy()


def is_by_epoch(name: str) -> bool:
    """Whether an array has one row per epoch, the first from before training."""
    if name.startswith("probe/"):
        return name not in _FOLLOWED
    return name == "embeddings/images" or name.startswith("snapshot/")


def storable_text(text: str) -> str:
    r"""`text` as valid Unicode; what is not becomes visible escapes.

    A file name that is not UTF-8 on disk reaches Python as lone surrogates (`"\udcff"`), which neither
    pandas' string columns nor Parquet can hold. Apply it before such a name enters a table.
    """
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(eq=False, repr=False)
class Trace:
    """What one run of one method did; every figure is a function of it.

    Targets are -1 where the truth is unknown. Epoch -1 means before training.

    Attributes:
        steps: epoch, step, term, value: each weighted loss term and their sum `"loss"`, per optimizer step.
        samples: epoch, index, pseudo_label, confidence in [0, 1], margin in [0, 1], weight, target and, for
            each source, `<source>_label`, `<source>_confidence`: one row per training image and epoch. Methods
            with crops add `crop_weight_max` and `crop_effective`, the exponential of the weights' entropy.
        epochs: epoch, metric, value: `accuracy`, `pseudo_label_accuracy`, ... as fractions in [0, 1].
        predictions: epoch, index, prediction, confidence, target and margin: one row per evaluation image and epoch.
        skipped: path, reason: the files that could not be read.
        arrays: by name, as `clipviz.trace.schema.ARRAYS` lists them with their shapes; any may be absent. `probe`,
            `highlights`, `sources`, `cache`, `examples`, `embeddings` and `snapshots` read them.
        meta: JSON-able facts: method, model, data, split, seed, class_names, settings, versions, ...,
            `gallery_sentences`: [position in the highlights, class, sentence, cosine] of the nearest sentences, and
            `files`: {"learned": names of the training images, "measured": of the evaluation images}, by index.
        folder: the run folder that the trace was read from, "" in memory; not part of what is saved.
    """

    steps: pd.DataFrame = field(default_factory=partial(empty_table, "steps"))
    samples: pd.DataFrame = field(default_factory=partial(empty_table, "samples"))
    epochs: pd.DataFrame = field(default_factory=partial(empty_table, "epochs"))
    predictions: pd.DataFrame = field(default_factory=partial(empty_table, "predictions"))
    skipped: pd.DataFrame = field(default_factory=partial(empty_table, "skipped"))
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    folder: str = field(default="", init=False)

    def __repr__(self) -> str:
        measured = self.metric("accuracy")
        accuracy = f", accuracy {measured.iloc[-1]:.3f}" if len(measured) else ""
        place, status = self.meta.get("data", "unnamed images"), self.meta.get("status", "no status")
        return inert(f"Trace({self.method} on {place}, {status}, last epoch {self.final_epoch}{accuracy})")

    @property
    def method(self) -> str:
        """Name of the method, `"unknown"` where the metadata does not say."""
        return str(self.meta.get("method", "unknown"))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The C class names, in the order of the labels."""
        return tuple(self.meta.get("class_names") or ())

    @property
    def final_epoch(self) -> int:
        """The last epoch that was recorded; -1 when nothing was trained."""
        tables = (self.epochs, self.predictions, self.samples)
        return max((int(table["epoch"].max()) for table in tables if len(table)), default=-1)

    @property
    def has_targets(self) -> bool:
        """Whether any image came with its true label, so that an accuracy can be measured."""
        return any(bool((table["target"] >= 0).any()) for table in (self.predictions, self.samples))

    @property
    def probe(self) -> ImageGroup:
        """The images that were followed through the run."""
        return image_group(self.arrays, "probe/")

    @property
    def highlights(self) -> ImageGroup:
        """The instructive images: the most confident mistakes; without labels, those it was least sure of."""
        return image_group(self.arrays, "gallery/")

    @property
    def sources(self) -> schema.Sources:
        """What each source of the pseudo-labels said in the last epoch."""
        own = under(self.arrays, "sources/")
        crops = [own.pop(f"crop_{name}", None) for name in ("similarity", "logits", "gram")]
        index, target = schema.places(own, len(next(iter(own.values()), ())))
        logits = {name: own[name] for name in self.meta.get("sources") or () if name in own}
        return schema.Sources(index, target, logits, *crops)

    @property
    def cache(self) -> schema.Cache | None:
        """The heaviest cache entries of each highlight; None of methods without a cache."""
        own = under(self.arrays, "cache/")
        found: Any = (own.get(name) for name in ("labels", "votes", "index", "images"))
        return schema.Cache(*found) if "labels" in own else None

    @property
    def examples(self) -> schema.Examples | None:
        """What the model takes for the classes in question, if that was kept."""
        own = under(self.arrays, "examples/")
        return schema.Examples(own["images"], own["label"]) if "images" in own else None

    @property
    def embeddings(self) -> schema.Embeddings | None:
        """Where some evaluation images are, epoch by epoch, if that was kept."""
        own = under(self.arrays, "embeddings/")
        images = own.get("images")
        return None if images is None else schema.Embeddings(images, *schema.places(own, images.shape[1]))

    @property
    def exploration(self) -> schema.Exploration | None:
        """What can be explored of the evaluation images, if that was kept."""
        own = under(self.arrays, "exploration/")
        if "index" not in own:
            return None
        maps = {moment: under(own, f"{moment}/") for moment in ("before", "after")}
        logits, said = under(own, "logits/"), (own["top"], own["probs"])
        return schema.Exploration(own.get("sheet"), own["index"], own["target"], *said, logits, maps)

    @property
    def snapshots(self) -> dict[str, np.ndarray]:
        """Classifiers and prototypes by name, (E1,C,D)."""
        return under(self.arrays, "snapshot/")

    def file_name(self, index: int, part: str = "measured") -> str | None:
        """The file of image `index` of a part, relative to the folder of its data; None where the images are no files.

        "measured" are the evaluation images, "learned" the training images.
        """
        files = self.meta.get("files")
        names = files.get(part) if isinstance(files, dict) else None
        return str(names[index]) if isinstance(names, list) and 0 <= index < len(names) else None

    def metric(self, name: str) -> pd.Series:
        """Values of one metric by epoch, in order; empty when it was never recorded."""
        return self.epochs[self.epochs["metric"] == name].set_index("epoch")["value"].sort_index().rename(name)

    def guesses(self, epoch: int | None = None) -> pd.DataFrame:
        """Samples of an epoch (the last); of a stream, whose epochs are slices of it, of all slices until then."""
        epochs, is_stream = self.samples["epoch"], self.meta.get("labels_are") == "online"
        epoch = epochs.max() if epoch is None else epoch
        return self.samples[(epochs == epoch) | (is_stream & (epochs < epoch))]

    def equals(self, other: Trace) -> bool:
        """Whether both hold the same tables, arrays and metadata, types included."""

        def contents(trace: Trace) -> tuple[object, ...]:  # bytes, so that NaN equals itself (of a run that diverged)
            arrays = {name: (array.dtype, array.shape, array.tobytes()) for name, array in trace.arrays.items()}
            return arrays, _meta_json(trace.meta)

        same_tables = all(getattr(self, table).equals(getattr(other, table)) for table in TABLES)
        return same_tables and contents(self) == contents(other)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the trace as a folder (`RUN/trace`), whole or not at all; an older trace at that place is replaced.

        Raises:
            ValueError: The place holds something other than a trace, or it would be refused by `load`: a table lacks a
                column, an array holds Python objects, labels name no class, the metadata cannot be stored as JSON.
            OSError: The disk is full or the place is not writable. What was there before is untouched.
        """
        files = {_META: _meta_json({**self.meta, "format_version": FORMAT_VERSION}).encode()}
        for name in TABLES:
            files[f"{name}.parquet"] = _table_bytes(name, getattr(self, name))
        files[_ARRAYS] = _array_bytes(self.arrays)
        n_classes = len(self.meta.get("class_names") or ())
        try:  # at the first save: what a method of one's own gave would be refused when all is done
            schema.check_table("samples", self.samples, n_classes)
            schema.check_arrays(self.arrays, n_classes)
        except Refused as error:
            raise ValueError(f"no trace can hold what {self.method} gives: {error}") from error
        return write_folder(Path(directory).expanduser(), files)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a trace folder, or the run folder that holds one as `trace/`; of a run that goes on, what it saved last.

        Where no process is at work any more on a run whose status is "running", it is "interrupted".

        Raises:
            ValueError: No trace there, or one that is truncated, altered, foreign or from a newer clipviz;
                the message names the file and the reason.
        """
        directory, files = read_folder(Path(path_text("a trace", path)).expanduser(), _FILES)

        def read(file: str, parser: Callable[[bytes], T]) -> T:
            return parse(directory / file, files[file], parser)

        def table(name: str) -> pd.DataFrame:
            return read(f"{name}.parquet", lambda content: schema.check_table(name, _read(content), n_classes))

        meta = read(_META, lambda content: schema.check_meta(parse_json(content)))
        if meta.get("status") == "running" and not is_locked(directory.parent):
            meta["status"] = "interrupted"
        n_classes = len(meta.get("class_names") or ())
        arrays = read(_ARRAYS, lambda content: schema.check_arrays(safetensors.numpy.load(content), n_classes))
        trace, place = cls(**{name: table(name) for name in TABLES}, arrays=arrays, meta=meta), Path(path).resolve()
        trace.folder = str(place.parent if place.name == "trace" else place)
        return trace


def _plain(value: Any) -> Any:
    """JSON's answer to the types that configs and numpy bring along."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON")


def _meta_json(meta: dict[str, Any]) -> str:
    try:
        return json.dumps({"format_version": FORMAT_VERSION, **meta}, indent=1, default=_plain, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"trace metadata must be valid JSON with finite numbers, but {error}") from error


def _table_bytes(name: str, table: pd.DataFrame) -> bytes:
    if missing := [column for column in TABLES[name] if column not in table.columns]:
        raise ValueError(f"table {name!r} lacks the columns {missing}; it has {list(map(str, table.columns))}")
    table = table.copy(deep=False)
    for key in [key for key, dtype in table.dtypes.items() if dtype.kind == "O"]:
        table[key] = table[key].map(lambda value: storable_text(value) if isinstance(value, str) else value)
    buffer = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False, nthreads=1), buffer, compression="zstd")
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(f"table {name!r} cannot be stored: {error}") from error
    return buffer.getvalue()


def _array_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    for name, array in arrays.items():
        if np.asarray(array).dtype.kind not in "biuf":
            raise ValueError(
                f"array {name!r} must hold numbers, got dtype {np.asarray(array).dtype}; "
                "text and Python objects belong in the metadata or a table"
            )
    return safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in arrays.items()})


def _read(content: bytes) -> pd.DataFrame:
    # In this thread: a pool that is still starting when a short script ends aborts the whole process. The types are
    # those of the columns: what else a file says about them could be anything.
    table = pq.ParquetFile(io.BytesIO(content)).read(use_threads=False)
    return table.to_pandas(use_threads=False, ignore_metadata=True)
