"""The images that can be explored in the page, as its scripts read them."""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from clipviz.figures import confusion_info, is_trained, trace_labels
from clipviz.figures.saliency import KIND_NAMES, unit_range
from clipviz.figures.static import encoded
from clipviz.figures.style import apart, color_table, shorten
from clipviz.report.page import array, packed
from clipviz.trace import Trace
from clipviz.trace.schema import SHEET_COLUMNS, Exploration

_TOP = 5  # classes of each image
_NONE = 65535  # a class that is not known
_MOST_PIXELS = 64_000_000  # of a sheet of thumbnails
_MOST_MAP_BYTES = 2_500_000  # of all runs, packed; what is left out is said
_LEFT_OUT = ("fiedler",)  # kinds that say less than those they are made into


def explored(traces: Sequence[Trace]) -> dict[str, Any]:
    """Images and what each run says of them, packed for `explore.js`, and how many of all they are."""
    images = _thumbnails(traces)
    index = np.array(sorted(images), dtype=int)
    if not len(index):
        return {"n_explored": 0, "explored": ""}
    parts = [list(_parts(trace)) for trace in traces]
    texts = dict.fromkeys(row[2] for own in parts for _, said in own for row in said)
    kinds = _affordable([part for own in parts for part, _ in own])
    known = pd.concat([trace.predictions[["index", "target"]] for trace in traces]).groupby("index")["target"].max()
    files = [next((name for trace in traces if (name := trace.file_name(i))), None) for i in index.tolist()]
    content = {
        "classes": apart(traces[0].class_names, 60),
        "labels": apart(traces[0].class_names, 18),
        "colors": array(np.frombuffer(color_table(), np.uint8), "u1"),
        "index": array(index, "i4"),
        "target": array(known.reindex(index, fill_value=-1), "i4"),
        "files": [None if name is None else shorten(name, 200) for name in files],
        **_sheet([images[i] for i in index.tolist()]),
        "runs": [
            _run(label, trace, index) | {"parts": [_part(*part, index, list(texts), kinds) for part in own]}
            for label, trace, own in zip(trace_labels(traces), traces, parts, strict=True)
        ],
        "sentences": [shorten(text, 400) for text in texts],
    }
    is_spread = any(trace.exploration for trace in traces)
    facts = {"n_explored": len(index), "is_spread": is_spread, "has_left_out": kinds is not None}
    return facts | {"explored": packed(json.dumps(content))}


def _thumbnails(traces: Sequence[Trace]) -> dict[int, np.ndarray]:
    """Squares (s,s,3) uint8 by position: those that were recorded to be explored, and the highlights of every run."""
    found: dict[int, np.ndarray] = {}
    for trace in traces:
        if (seen := trace.exploration) is not None and seen.sheet is not None and not set(seen.index) <= found.keys():
            found = dict(zip(seen.index.tolist(), _cut(seen.sheet, len(seen.index)), strict=True)) | found
    for trace in traces:
        for number, image in zip(trace.highlights.index.tolist(), trace.highlights.images, strict=True):
            found.setdefault(number, image)
    side = min(map(len, found.values()), default=0)
    return {number: np.asarray(Image.fromarray(image).resize((side, side))) for number, image in found.items()}


def _cut(sheet: np.ndarray, n: int) -> np.ndarray:
    """The thumbnails (n,s,s,3) of a sheet; a sheet that is none is an error of one line."""
    columns = min(n, SHEET_COLUMNS)
    rows = -(-n // columns)
    try:
        picture = Image.open(io.BytesIO(sheet.tobytes()), formats=["JPEG"])
        side = picture.width // columns
        if picture.width * picture.height > _MOST_PIXELS or picture.size != (columns * side, rows * side):
            raise ValueError(f"{picture.width} x {picture.height} pixels")
        pixels = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError) as error:
        raise ValueError(f"this trace's sheet of thumbnails does not hold {n} images: {error}") from None
    return pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)[:n]


def _sheet(images: Sequence[np.ndarray]) -> dict[str, Any]:
    """Squares in rows of `SHEET_COLUMNS`."""
    side, rows = len(images[0]), -(-len(images) // SHEET_COLUMNS)
    tiles = np.pad(np.stack(images), ((0, rows * SHEET_COLUMNS - len(images)), (0, 0), (0, 0), (0, 0)))
    pixels = tiles.reshape(rows, SHEET_COLUMNS, side, side, 3).swapaxes(1, 2).reshape(rows * side, -1, 3)
    data = base64.b64encode(encoded(Image.fromarray(pixels), "JPEG", quality=85)).decode()
    return {"side": side, "columns": SHEET_COLUMNS, "sheet": f"u1:{data}"}


def _parts(trace: Trace) -> Iterator[tuple[Exploration, list[Any]]]:
    """What was kept of the highlights, as if it had been explored, then of what was explored, with the sentences."""
    found = trace.highlights
    if found.probs is not None:
        top = np.argsort(-found.probs, axis=1, kind="stable")[:, :_TOP]
        is_missing = (found.target >= 0) & (top != found.target[:, None]).all(1)
        top[is_missing, -1] = found.target[is_missing]
        maps = {kind: (255 * unit_range(values) + 0.5).astype(np.uint8) for kind, values in found.maps.items()}
        probs = np.take_along_axis(found.probs, top, 1)
        part = Exploration(None, found.index, found.target, top, probs, {}, {"after": maps})
        yield part, trace.meta.get("gallery_sentences") or []
    if trace.exploration is not None:
        yield trace.exploration, trace.meta.get("exploration_sentences") or []


def _affordable(parts: Sequence[Exploration]) -> int | None:
    """None if a page can carry all maps; else how many bytes the first kind of each run may take at each moment."""
    sizes = [
        [maps.size for kind, maps in kinds.items() if kind not in _LEFT_OUT] for p in parts for kinds in p.maps.values()
    ]
    return None if sum(map(sum, sizes)) <= _MOST_MAP_BYTES else _MOST_MAP_BYTES // len(sizes)


def _part(
    part: Exploration, said: Sequence[Any], index: np.ndarray, texts: list[str], room: int | None
) -> dict[str, Any]:
    """Some images by their places, with what a run says of each."""
    names = {kind for maps in part.maps.values() for kind in maps} - {*_LEFT_OUT}
    kinds = sorted(names, key=lambda kind: ([*KIND_NAMES, kind].index(kind), kind))
    maps = [
        {"kind": KIND_NAMES.get(kind, kind), "moment": moment, "mask": kind == "ncut", "shape": [*values.shape[1:]],
         "values": array(values, "u1")}
        for kind in (kinds if room is None else kinds[:1]) for moment in ("before", "after")
        if (values := part.maps.get(moment, {}).get(kind)) is not None and (room is None or values.size <= room)
    ]  # fmt: skip
    numbers = {text: i for i, text in enumerate(texts)}
    return {
        "places": array(np.where(np.isin(part.index, index), np.searchsorted(index, part.index), -1), "i4"),
        "top": array(part.top, "u2"),
        "nTop": part.top.shape[1],
        "probs": array(part.probs, "f2"),
        "logits": {name: array(values, "f2") for name, values in part.logits.items()},
        "maps": maps,
        "said": [[row, label, numbers[text], round(cosine, 3)] for row, label, text, cosine in said],
    }


def _run(label: str, trace: Trace, index: np.ndarray) -> dict[str, Any]:
    """What a run predicts for each image (E,n) by epoch, and its confusion of all images, where it is not 0."""
    rows = trace.predictions[trace.predictions["index"].isin(index)].drop_duplicates(["epoch", "index"])
    prediction, confidence = (
        rows.pivot(index="epoch", columns="index", values=column).reindex(columns=index)
        for column in ("prediction", "confidence")
    )
    counts = confusion_info(trace).counts
    cells = np.flatnonzero(counts)
    return {
        "label": label,
        "isTrained": is_trained(trace),
        "epochs": prediction.index.tolist(),
        "prediction": array(prediction.fillna(_NONE), "u2"),
        "confidence": array((255 * confidence.fillna(0) + 0.5).clip(0, 255), "u1"),
        "cells": array(cells, "i4"),
        "counts": array(counts.ravel()[cells], "i4"),
    }
