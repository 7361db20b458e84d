"""The images that can be explored in the page, as its scripts read them."""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from clipviz.figures import confusion_info, is_trained, trace_labels
from clipviz.figures.image_table import decided
from clipviz.figures.prototypes import Scene
from clipviz.figures.saliency import KIND_NAMES, PART_COLORS, unit_range
from clipviz.figures.sources import decision_name, kinds_of_decision, source_names
from clipviz.figures.static import encoded
from clipviz.figures.style import apart, color_table, shorten
from clipviz.report.page import array, packed, rendered
from clipviz.report.summary import is_comparable, n_evaluated
from clipviz.trace import Trace
from clipviz.trace.schema import SHEET_COLUMNS, Exploration

_TOP = 5  # classes of each image
MOST_BYTES = 320_000  # of a view in a notebook, which stays below a megabyte with several of them
_MOST_IMAGES = (480, 240, 120, 60)
_NONE = 65535  # a class that is not known
_MOST_PIXELS = 64_000_000  # of a sheet of thumbnails
_MOST_MAP_BYTES = 2_500_000  # of all runs, packed; what is left out is said
_LEFT_OUT = ("fiedler",)  # kinds that say less than those they are made into


def alive(traces: Sequence[Trace], picture: str, alt: str, selected: Sequence[str] = ()) -> str:
    """HTML for a notebook: as many images as fit into `MOST_BYTES`, to explore without a kernel.

    Where no scripts may run it is the picture (base64 of a JPEG). "" where runs cannot be compared, hold no images, or
    even a few do not fit.
    """
    facts: dict[str, Any] = {"picture": picture, "alt": alt, "labels": trace_labels(traces)}
    facts["n_evaluated"] = n_evaluated(traces[0])
    for most in _MOST_IMAGES if is_comparable(traces) else ():
        found = explored(traces, most)
        page = packed(rendered("view.html", **facts, **found, selected=[*selected[:1]]))
        if len(html := rendered("alive.html", **facts, page=page)) <= MOST_BYTES:
            return html if found["n_explored"] else ""
    return ""


def explored(traces: Sequence[Trace], most: int | None = None) -> dict[str, Any]:
    """Images and what each run says of them, packed for `explore.js`, and how many of all they are.

    Of more than `most` images as many: the highlights, and others spread over the classes.
    """
    images = _thumbnails(traces)
    known = pd.concat([trace.predictions[["index", "target"]] for trace in traces]).groupby("index")["target"].max()
    target = known.reindex(sorted(images), fill_value=-1)
    is_first = target.index.isin([number for trace in traces for number in trace.highlights.index])
    turns = np.where(is_first, -1, target.groupby(target).cumcount())
    target = target.iloc[np.sort(np.argsort(turns, kind="stable")[:most])]
    index = target.index.to_numpy(int)
    if not len(index):
        return {"n_explored": 0, "explored": ""}
    parts = [[_kept(*part, index) for part in _parts(trace)] for trace in traces]
    texts = dict.fromkeys(row[2] for own in parts for _, said in own for row in said)
    kinds = _affordable([part for own in parts for part, _ in own], _MOST_MAP_BYTES // (1 if most is None else 25))
    files = [next((name for trace in traces if (name := trace.file_name(i))), None) for i in index.tolist()]
    sheet: dict[int | bytes, np.ndarray] = dict(enumerate(images[i] for i in index.tolist()))
    runs = [
        _run(label, trace, index) | {"parts": [_part(*part, index, list(texts), kinds) for part in own]}
        | _reasons(trace, index, sheet)
        for label, trace, own in zip(trace_labels(traces), traces, parts, strict=True)
    ]  # fmt: skip
    content = {
        "classes": apart(traces[0].class_names, 60), "labels": apart(traces[0].class_names, 16),
        "colors": array(np.frombuffer(color_table(), np.uint8), "u1"), "index": array(index, "i4"),
        "target": array(target, "i4"), "files": [None if name is None else shorten(name, 200) for name in files],
        **_sheet([*sheet.values()]), "runs": runs, "sentences": [shorten(text, 400) for text in texts],
        "partMasks": _part_masks(traces, index),
        "partColors": array([int(color[i : i + 2], 16) for color in PART_COLORS for i in (1, 3, 5)], "u1"),
    }  # fmt: skip
    facts = {"n_explored": len(index), "is_spread": any(trace.exploration for trace in traces)}
    return facts | {"has_left_out": kinds is not None, "explored": packed(json.dumps(content))}


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
    try:
        picture = Image.open(io.BytesIO(sheet.tobytes()), formats=["JPEG"])
        side = picture.width // columns
        if picture.size != (columns * side, -(-n // columns) * side) or picture.width * picture.height > _MOST_PIXELS:
            raise ValueError(f"{picture.width} x {picture.height} pixels")
        pixels = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError) as error:
        raise ValueError(f"this trace's sheet of thumbnails does not hold {n} images: {error}") from None
    return pixels.reshape(-1, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)[:n]


def _sheet(images: Sequence[np.ndarray]) -> dict[str, Any]:
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
        probs, *branches = (np.take_along_axis(a, top, 1) for a in (found.probs, *found.branches.values()))
        logits = {name: np.log(np.maximum(p, 1e-37)) for name, p in zip(found.branches, branches, strict=True)}
        part = Exploration(None, found.index, found.target, top, probs, logits, {"after": maps})
        yield part, trace.meta.get("gallery_sentences") or []
    if (own := trace.exploration) is not None:
        own = replace(own, logits=_source_logits(trace, own) | own.logits)
        yield own, trace.meta.get("exploration_sentences") or []


def _kept(part: Exploration, said: Sequence[Any], index: np.ndarray) -> tuple[Exploration, list[Any]]:
    keep = np.isin(part.index, index)
    rows, own = np.cumsum(keep) - 1, {name: getattr(part, name)[keep] for name in ("index", "target", "top", "probs")}
    logits = {name: values[keep] for name, values in part.logits.items()}
    maps = {when: {kind: values[keep] for kind, values in kinds.items()} for when, kinds in part.maps.items()}
    return replace(part, **own, logits=logits, maps=maps), [[int(rows[row]), *more] for row, *more in said if keep[row]]


def _source_logits(trace: Trace, part: Exploration) -> dict[str, np.ndarray]:
    """Of the sources of the pseudo-labels (Q,L), where positions in training are those of the evaluation; NaN: none."""
    if trace.meta.get("accuracy_is") != "transductive" or not len(trace.sources.index):
        return {}
    last = {number: row for row, number in enumerate(trace.sources.index.tolist())}
    rows = np.array([last.get(number, -1) for number in part.index.tolist()])
    found = {name: np.take_along_axis(logits[rows], part.top, 1) for name, logits in trace.sources.logits.items()}
    return {name: np.where(rows[:, None] >= 0, logits, np.nan) for name, logits in found.items()}


def _reasons(trace: Trace, index: np.ndarray, sheet: dict[int | bytes, np.ndarray]) -> dict[str, Any]:
    """[class, what it adds to its logit, place in the sheet] of cache entries by image; the surest image by class."""

    def place(image: np.ndarray) -> int:
        square = np.asarray(Image.fromarray(image).resize(sheet[0].shape[:2]))
        sheet.setdefault(square.tobytes(), square)  # the same one is kept once
        return [*sheet].index(square.tobytes())

    cache, examples, found = trace.cache, trace.examples, trace.highlights
    entries: dict[int, list[Any]] = {}
    if cache is not None:
        images = [[None] * len(labels) for labels in cache.labels] if cache.images is None else cache.images
        for row in np.flatnonzero(np.isin(found.index, index)):
            squares = [None if image is None else place(image) for image in images[row]]
            facts = zip(cache.labels[row].tolist(), cache.contributions[row].round(3).tolist(), squares, strict=True)
            entries[int(found.index[row])] = list(facts)
    surest = dict(zip(examples.label.tolist(), map(place, examples.images), strict=True)) if examples else {}
    return {"cache": entries, "surest": surest, "plane": _plane(trace)}


def _plane(trace: Trace) -> dict[str, Any] | None:
    """Prototypes and images of a trained run, for the scatter canvas."""
    scene = Scene.of(trace)
    kinds = {"places": "f2", "group": "u1", "label": "i4", "marks": "u1", "index": "i4"}
    arrays = {name: array(getattr(scene, name), kind) for name, kind in kinds.items()}
    return arrays | scene.words if is_trained(trace) and len(scene.index) else None


def _part_masks(traces: Sequence[Trace], index: np.ndarray) -> dict[int, list[Any]]:
    """True parts of the highlights that have some, by image: height, width, ids."""
    masks = [(group.index.tolist(), group.parts) for trace in traces if (group := trace.highlights).parts is not None]
    return {
        number: [*mask.shape, array(mask, "u1")]
        for numbers, parts in masks for number, mask in zip(numbers, parts, strict=True) if number in index
    }  # fmt: skip


def _affordable(parts: Sequence[Exploration], most: int) -> int | None:
    """None if a page can carry all maps; else how many bytes the first kind of each run may take at each moment."""
    moments = [kinds for part in parts for kinds in part.maps.values()]
    sizes = [[maps.size for kind, maps in kinds.items() if kind not in _LEFT_OUT] for kinds in moments]
    return None if sum(map(sum, sizes)) <= most else most // len(sizes)


def _part(
    part: Exploration, said: Sequence[Any], index: np.ndarray, texts: list[str], room: int | None
) -> dict[str, Any]:
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
        "places": array(np.searchsorted(index, part.index), "i4"), "top": array(part.top, "u2"),
        "nTop": part.top.shape[1], "probs": array(part.probs, "f2"), "maps": maps,
        "logits": {k: array(v, "f4" if (np.abs(v) >= 65_504).any() else "f2") for k, v in part.logits.items()},
        "said": [[row, label, numbers[text], round(cosine, 3)] for row, label, text, cosine in said],
    }  # fmt: skip


def _run(label: str, trace: Trace, index: np.ndarray) -> dict[str, Any]:
    """What a run predicts for each image (E,n) by epoch, its confidence in percent, and its confusion of all images."""
    rows = trace.predictions[trace.predictions["index"].isin(index)].drop_duplicates(["epoch", "index"])
    prediction, confidence = (
        rows.pivot(index="epoch", columns="index", values=column).reindex(columns=index)
        for column in ("prediction", "confidence")
    )
    counts = confusion_info(trace).counts
    cells = np.flatnonzero(counts)
    is_learned, kinds = trace.meta.get("accuracy_is") == "transductive", kinds_of_decision(source_names(trace))
    learned = trace.samples[trace.samples["index"].isin(index) & is_learned].drop_duplicates(["epoch", "index"])
    who = learned.assign(who=decided(trace, learned)).pivot(index="epoch", columns="index", values="who")
    who = who.reindex(index=prediction.index, columns=index)
    codes = pd.Index(kinds).get_indexer(pd.Index(who.to_numpy().ravel()))  # -1, which is 255 as a byte: nobody
    return {
        "label": label, "deciders": [decision_name(kind, source_names(trace)) for kind in kinds],
        "decided": array(codes.astype("u1"), "u1"), "isTrained": is_trained(trace), "epochs": prediction.index.tolist(),
        "prediction": array(prediction.fillna(_NONE), "u2"),
        "confidence": array(100 * confidence.fillna(0) + 0.5, "u1"), "cells": array(cells, "i4"),
        "counts": array(counts.ravel()[cells], "i4"),
    }  # fmt: skip
