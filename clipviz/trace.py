"""The record of a run: tidy tables, named arrays and one dictionary of metadata. Nothing here needs torch.

A trace on disk is a folder::

    manifest.json        {"format": "clipviz-trace", "format_version": 1, "files": {name: sha256}}
    meta.json            method, model, data, class names, settings, versions, ...
    <table>.parquet      steps, samples, epochs, predictions, skipped
    arrays.safetensors   probe/..., snapshot/..., sources/..., gallery/...

The manifest is what makes a folder a trace. Each file is checked against its hash before any parser sees
it, so a flipped bit is an error and never a slightly different curve. No format here can hold a pickle.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import os
import secrets
import shutil
import time
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

T = TypeVar("T")

FORMAT = "clipviz-trace"
FORMAT_VERSION = 1

#: Required columns of each table, with the type of an empty one. Further columns are kept as they are:
#: `samples` has `<source>_label` and `<source>_confidence` for every source of pseudo-labels.
TABLES: dict[str, dict[str, str]] = {
    "steps": {"epoch": "int64", "step": "int64", "term": "str", "value": "float64"},
    "samples": {
        "epoch": "int64",
        "index": "int64",
        "pseudo_label": "int64",
        "confidence": "float32",
        "margin": "float32",
        "weight": "float32",
        "target": "int64",
    },
    "epochs": {"epoch": "int64", "metric": "str", "value": "float64"},
    "predictions": {
        "epoch": "int64",
        "index": "int64",
        "prediction": "int64",
        "confidence": "float32",
        "target": "int64",
    },
    "skipped": {"path": "str", "reason": "str"},
}

_FOLLOWED = ("probe/images", "probe/index", "probe/target", "probe/parts")
"""Arrays of the probe that are the same at every epoch."""

_TRIES = 20
_MANIFEST = "manifest.json"
_META = "meta.json"
_ARRAYS = "arrays.safetensors"
_FILES = frozenset({_MANIFEST, _META, _ARRAYS} | {f"{table}.parquet" for table in TABLES})


def empty_table(name: str) -> pd.DataFrame:
    """Table `name` of `TABLES` without rows, with its required columns and their types."""
    return pd.DataFrame({column: pd.Series(dtype=dtype) for column, dtype in TABLES[name].items()})


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


@dataclass(eq=False)
class Trace:
    """What one run of one method did; every figure is a function of it.

    Targets are -1 where the truth is unknown. Epoch -1 means before training. E1 is the number of snapshots
    (before training, then one for each epoch), P of probe images, G of gallery images, C of classes.

    Attributes:
        steps: epoch, step, term, value: each weighted loss term and their sum `"loss"`, per optimizer step.
        samples: epoch, index, pseudo_label, confidence in [0, 1], margin in [0, 1], weight, target and, for
            each source, `<source>_label`, `<source>_confidence`: one row per training image and epoch. Methods
            with crops add `crop_weight_max` and `crop_effective`, the exponential of the weights' entropy.
        epochs: epoch, metric, value: `accuracy`, `pseudo_label_accuracy`, ... as fractions in [0, 1].
        predictions: epoch, index, prediction, confidence, target: one row per evaluation image and epoch.
        skipped: path, reason: the files that could not be read.
        arrays: `probe/images` (P,H,W,3) uint8, `probe/index` and `probe/target` (P,), `probe/parts` (P,H,W)
            uint8, `probe/<kind>` (E1,P,h,w) float, `snapshot/<name>` (E1,C,D), `sources/index` and
            `sources/target` (n,), `sources/<name>` (n,C) scaled logits of the last epoch, `gallery/...` with
            G in the place of P, `gallery/probs` and `gallery/branch/<name>` (G,C), `examples/images` (X,h,w,3)
            uint8 and `examples/label` (X,), the images most surely called a class, `embeddings/images` (E1,m,D)
            float16 of m evaluation images with `embeddings/index` and `embeddings/target` (m,), and of methods
            with crops `sources/crop_similarity` (n,K), `sources/crop_logits` (n,K,C), `sources/crop_gram`
            (n,K,K) of the last epoch, and of methods with a cache its k heaviest entries for each gallery image:
            `cache/index` (positions in training), `cache/labels`, `cache/votes` (G,k) and `cache/images`
            (G,k,h,w,3) uint8. Any of them may be absent.
        meta: JSON-able facts: method, model, data, split, seed, class_names, settings, versions, ..., and
            `gallery_sentences`: [position in the gallery, class, sentence, cosine] of the nearest sentences.
    """

    steps: pd.DataFrame = field(default_factory=partial(empty_table, "steps"))
    samples: pd.DataFrame = field(default_factory=partial(empty_table, "samples"))
    epochs: pd.DataFrame = field(default_factory=partial(empty_table, "epochs"))
    predictions: pd.DataFrame = field(default_factory=partial(empty_table, "predictions"))
    skipped: pd.DataFrame = field(default_factory=partial(empty_table, "skipped"))
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """Name of the method, `"unknown"` where the metadata does not say."""
        return str(self.meta.get("method", "unknown"))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The C class names, in the order of the labels."""
        return tuple(self.meta.get("class_names", ()))

    @property
    def final_epoch(self) -> int:
        """The last epoch that was recorded; -1 when nothing was trained."""
        tables = (self.epochs, self.predictions, self.samples)
        return max((int(table["epoch"].max()) for table in tables if len(table)), default=-1)

    @property
    def has_targets(self) -> bool:
        """Whether any image came with its true label, so that an accuracy can be measured."""
        return any(bool((table["target"] >= 0).any()) for table in (self.predictions, self.samples))

    def metric(self, name: str) -> pd.Series:
        """Values of one metric by epoch, in order; empty when it was never recorded."""
        rows = self.epochs[self.epochs["metric"] == name]
        return rows.set_index("epoch")["value"].sort_index().rename(name)

    def equals(self, other: Trace) -> bool:
        """Whether both hold the same tables, arrays and metadata, types included."""
        return (
            all(getattr(self, table).equals(getattr(other, table)) for table in TABLES)
            and self.arrays.keys() == other.arrays.keys()
            and all(_same_array(array, other.arrays[name]) for name, array in self.arrays.items())
            and _meta_json(self.meta) == _meta_json(other.meta)
        )

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the trace as a folder, whole or not at all; an older trace at that place is replaced.

        Args:
            directory: The trace folder itself (`RUN/trace`). Its parents are made.

        Returns:
            The folder.

        Raises:
            ValueError: The place holds something other than a trace, a table lacks a column, an array holds
                Python objects, or the metadata is not JSON-able.
            OSError: The disk is full or the place is not writable. What was there before is untouched.
        """
        directory = Path(directory)
        _refuse_to_replace_foreign(directory)
        contents = self._encode()
        directory.parent.mkdir(parents=True, exist_ok=True)
        partial_directory = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.partial")
        try:
            partial_directory.mkdir()
            for name, content in contents.items():
                _write_synced(partial_directory / name, content)
            _sync_directory(partial_directory)
            _swap_in(partial_directory, directory)
        finally:
            shutil.rmtree(partial_directory, ignore_errors=True)
        return directory

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Read a trace folder, or the run folder that holds one as `trace/`; of a run that goes on, what it saved last.

        Raises:
            ValueError: No trace there, or one that is truncated, altered, foreign or from a newer clipviz;
                the message names the file and the reason.
        """
        directory, contents = _read_whole(Path(path))
        meta = _parse(directory / _META, contents[_META], _parse_meta)
        tables = {name: _parse_table(directory, name, contents[f"{name}.parquet"]) for name in TABLES}
        arrays = _parse(directory / _ARRAYS, contents[_ARRAYS], _parse_arrays)
        return cls(**tables, arrays=arrays, meta=meta)

    def _encode(self) -> dict[str, bytes]:
        """Every file's bytes, the manifest last."""
        contents = {_META: _meta_json({**self.meta, "format_version": FORMAT_VERSION}).encode()}
        for name in TABLES:
            contents[f"{name}.parquet"] = _table_bytes(name, getattr(self, name))
        contents[_ARRAYS] = _array_bytes(self.arrays)
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, "files": hashes}
        return {**contents, _MANIFEST: json.dumps(manifest, indent=1).encode()}


def _same_array(one: np.ndarray, other: np.ndarray) -> bool:
    # Bytes, so that NaN equals itself (a diverged run is recorded too).
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _plain(value: Any) -> Any:
    """JSON's answer to the types that configs and numpy bring along."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} is not JSON-able")


def _meta_json(meta: dict[str, Any]) -> str:
    without_version = {key: value for key, value in meta.items() if key != "format_version"}
    version = meta.get("format_version", FORMAT_VERSION)
    try:
        return json.dumps({"format_version": version, **without_version}, indent=1, default=_plain, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"trace metadata must be JSON-able (numbers finite), but {error}") from error


def _table_bytes(name: str, table: pd.DataFrame) -> bytes:
    _check_columns(f"table {name!r}", name, table)
    text = table.select_dtypes(include=["object", "string"]).columns
    table = table.assign(**{column: table[column].map(_storable) for column in text})
    buffer = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False, nthreads=1), buffer, compression="zstd")
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(f"table {name!r} cannot be stored: {error}") from error
    return buffer.getvalue()


def _storable(value: Any) -> Any:
    return storable_text(value) if isinstance(value, str) else value


def _array_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    for name, array in arrays.items():
        if np.asarray(array).dtype.kind not in "biuf":
            raise ValueError(
                f"array {name!r} must hold numbers, got dtype {np.asarray(array).dtype}; "
                "text and Python objects belong in the metadata or a table"
            )
    return safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in arrays.items()})


def _check_columns(where: str, name: str, table: pd.DataFrame) -> None:
    missing = [column for column in TABLES[name] if column not in table.columns]
    if missing:
        raise ValueError(f"{where} lacks the columns {missing}; it has {[str(column) for column in table.columns]}")


def _refuse_to_replace_foreign(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ValueError(f"a trace is a folder, but {directory} is a file; choose another place")
    foreign = sorted(set(os.listdir(directory)) - _FILES)
    if foreign:
        raise ValueError(
            f"{directory} holds {foreign[0]!r}, which is no part of a trace and would be lost; choose another folder"
        )


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    # Not every system lets a folder be opened; there the rename below is the best there is.
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap_in(new: Path, directory: Path) -> None:
    """Put the complete folder `new` where `directory` is; the older one goes only once it is replaced."""
    older = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.older")
    replaces = directory.exists()
    if replaces:
        directory.rename(older)
    try:
        new.rename(directory)
    except OSError:
        if replaces:
            older.rename(directory)
        raise
    _sync_directory(directory.parent)
    if replaces:
        shutil.rmtree(older, ignore_errors=True)


def _read_whole(path: Path) -> tuple[Path, dict[str, bytes]]:
    """A trace folder and its files, all of one save: a live run may swap another one in meanwhile."""
    for _ in range(_TRIES):
        before = _at(path)
        try:
            directory = _find_trace(path)
            return directory, _read_checked(directory)
        except ValueError:
            if before == _at(path) and not _is_swapping(path):
                raise
            time.sleep(0.05)
    directory = _find_trace(path)
    return directory, _read_checked(directory)


def _at(path: Path) -> list[int | None]:
    """Which folders lie at the places where a trace may be."""
    found: list[int | None] = []
    for directory in (path, path / "trace"):
        try:
            found.append(directory.stat().st_ino)
        except (OSError, ValueError):
            found.append(None)
    return found


def _is_swapping(path: Path) -> bool:
    """Whether there is no trace because a new one is just being put in place of the older."""
    for directory in (path, path / "trace"):
        with contextlib.suppress(OSError, ValueError):
            if not directory.exists() and any(directory.parent.glob(f".{glob.escape(directory.name)}.*.older")):
                return True
    return False


def _find_trace(path: Path) -> Path:
    try:
        for directory in (path, path / "trace"):
            if (directory / _MANIFEST).is_file():
                return directory
        exists, is_directory = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:  # no permission; a NUL byte in the name
        raise ValueError(f"cannot look into {path!s}: {error}") from error
    if not exists:
        raise ValueError(f"no trace at {path}: there is no such folder")
    if not is_directory:
        raise ValueError(f"{path} is {_kind_of(path)}; a trace is a folder (give the run folder or its trace/)")
    raise ValueError(f"no trace in {path}: neither it nor its trace/ holds {_MANIFEST}; give a run folder")


def _kind_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError:
        return "a file"
    if head[:1] == b"\x80" or head == b"PK\x03\x04":
        return "a file that looks pickled (torch.save, pickle, npz), which clipviz never unpickles"
    return "a file"


def _read_checked(directory: Path) -> dict[str, bytes]:
    """Bytes of every file that the manifest must list, each equal to its recorded hash."""
    hashes = _parse(directory / _MANIFEST, _read(directory / _MANIFEST), _parse_manifest)
    contents = {}
    for name in sorted(_FILES - {_MANIFEST}):
        contents[name] = _read(directory / name)
        if hashlib.sha256(contents[name]).hexdigest() != hashes[name]:
            raise ValueError(
                f"{directory / name} is not what was saved ({len(contents[name]):,} bytes whose SHA-256 is "
                f"not the one in {_MANIFEST}): truncated, altered or pickled; copy the trace again or repeat "
                "the run"
            )
    return contents


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the trace is incomplete; copy it again or repeat the run") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def _parse(path: Path, content: bytes, parser: Callable[[bytes], T]) -> T:
    try:
        return parser(content)
    except _Refused as refusal:
        raise ValueError(f"{path}: {refusal}") from None
    except Exception as error:  # parsers of foreign bytes raise what they like; all of it means the same
        raise ValueError(f"{path} cannot be read as part of a trace: {type(error).__name__}: {error}") from error


class _Refused(ValueError):
    """A well-formed file with contents that are not ours; its message is complete."""


def _parse_manifest(content: bytes) -> dict[str, str]:
    manifest = json.loads(content)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _Refused(f"wanted the manifest of a {FORMAT}, this is something else")
    version = manifest.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _Refused(f"format_version must be a whole number from 1 on, got {version!r}")
    if version > FORMAT_VERSION:
        raise _Refused(f"format {version} is newer than this clipviz reads (up to {FORMAT_VERSION}); upgrade clipviz")
    hashes = manifest.get("files")
    if not isinstance(hashes, dict) or set(hashes) != _FILES - {_MANIFEST}:
        raise _Refused(f"must list the hash of each of {', '.join(sorted(_FILES - {_MANIFEST}))}, and no more")
    return hashes


def _parse_meta(content: bytes) -> dict[str, Any]:
    meta = json.loads(content)
    if not isinstance(meta, dict):
        raise _Refused(f"wanted a JSON object, got {type(meta).__name__}")
    names = meta.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _Refused("class_names must be a list of strings")
    return meta


def _parse_table(directory: Path, name: str, content: bytes) -> pd.DataFrame:
    path = directory / f"{name}.parquet"
    table = _parse(path, content, _read_table)
    _check_columns(str(path), name, table)
    return table


def _read_table(content: bytes) -> pd.DataFrame:
    # In this thread: a pool that is still starting when a short script ends aborts the whole process.
    return pq.read_table(io.BytesIO(content), use_threads=False).to_pandas(use_threads=False)


def _parse_arrays(content: bytes) -> dict[str, np.ndarray]:
    return safetensors.numpy.load(content)
