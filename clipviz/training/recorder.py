"""Recorder: events in, trace out. The one module that knows both stems."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from clipviz.events import (
    EpochFinished,
    Event,
    Gallery,
    Listener,
    Predictions,
    Probe,
    RunFinished,
    RunStarted,
    StepFinished,
)
from clipviz.ops import margin
from clipviz.trace import TABLES, Trace, is_by_epoch

MAX_SOURCE_LOGITS = 10_000_000
"""Source logits of the last epoch are kept up to so many numbers per source (20 MB of float16)."""

MAX_EMBEDDED = 512
"""The embeddings of so many evaluation images are kept, spread evenly, at every epoch (float16)."""


def record(events: Iterable[Event], *listeners: Listener) -> Trace:
    """Drain a run into a trace; listeners see every event after it is recorded.

    Ctrl-C (or the notebook's stop button) ends the run at a step boundary; what was recorded is returned.

    Args:
        events: from `adapt`.
        listeners: called with each event.
    """
    recorder = Recorder()
    try:
        for event in events:
            recorder(event)
            for listener in listeners:
                listener(event)
    except KeyboardInterrupt:
        recorder.meta["status"] = "stopped"
    return recorder.trace()


class Recorder:
    """A listener that grows a trace.

    Args:
        trace: what an interrupted run recorded; the run goes on at its end.

    Attributes:
        meta: metadata of the trace.
    """

    def __init__(self, trace: Trace | None = None) -> None:
        start = trace or Trace()
        self._is_resumed = trace is not None
        self.meta: dict[str, Any] = dict(start.meta)
        self._tables: dict[str, list[pd.DataFrame]] = {
            name: [table] if len(table := getattr(start, name)) else [] for name in TABLES
        }
        self._fixed: dict[str, np.ndarray] = {}
        self._growing: dict[str, list[np.ndarray]] = {}
        for name, array in start.arrays.items():
            if is_by_epoch(name):
                self._growing[name] = list(array)
            elif not name.startswith("sources/"):
                self._fixed[name] = array
        # What steps told since the last flush, still on the device: reading it at every step would wait for every step.
        self._losses: list[tuple[int, int, str, Tensor]] = []
        self._guesses: list[tuple[int, dict[str, Tensor]]] = []
        self._logits: dict[str, list[Tensor]] = {}
        self._source_epoch = int(start.samples["epoch"].iloc[-1]) if len(start.samples) else -1
        self._sources = {
            name.removeprefix("sources/"): [array]
            for name, array in start.arrays.items()
            if name.startswith("sources/")
        }

    def __call__(self, event: Event) -> None:
        """Take one event in."""
        match event:
            case RunStarted():
                self._run_started(event)
            case StepFinished():
                self._step_finished(event)
            case EpochFinished():
                self._epoch_finished(event)
            case RunFinished():
                self._run_finished(event)

    def trace(self) -> Trace:
        """The trace so far."""
        self._flush_steps()
        tables = {name: pd.concat(parts, ignore_index=True) for name, parts in self._tables.items() if parts}
        arrays = dict(self._fixed)
        arrays.update({name: np.stack(rows) for name, rows in self._growing.items()})
        arrays.update({f"sources/{name}": np.concatenate(rows) for name, rows in self._sources.items()})
        return Trace(**tables, arrays=arrays, meta=dict(self.meta))

    def _run_started(self, event: RunStarted) -> None:
        meta = dict(event.meta)
        skipped = meta.pop("skipped", [])
        self.meta.update(
            meta,
            class_names=list(event.class_names),
            n_images=event.n_images,
            status="running",
            seconds=event.seconds or None,
        )
        if self._is_resumed:
            return  # probe and skipped files are known
        if skipped:
            self._tables["skipped"].append(pd.DataFrame(skipped, columns=["path", "reason"]))
        if event.probe is not None:
            self._fixed.update(_probe_arrays("probe", event.probe))

    def _step_finished(self, event: StepFinished) -> None:
        if event.losses:
            total = torch.stack(list(event.losses.values())).sum()
            for term, value in {**event.losses, "loss": total}.items():
                self._losses.append((event.epoch, event.step, term, value))
        pseudo = event.pseudo
        columns = {  # copies, because a method may write into what it gave
            "index": event.index.clone(),
            "pseudo_label": pseudo.labels.clone(),
            "confidence": pseudo.probs.amax(-1),
            "margin": margin(pseudo.probs),
            "weight": pseudo.weights.float().clone(),
            "target": event.target.clone(),
        }
        for name, logits in pseudo.sources.items():
            confidence, labels = logits.softmax(-1).max(-1)
            is_tied = (logits == logits.amax(-1, keepdim=True)).sum(-1) > 1  # then it names no class
            columns[f"{name}_label"], columns[f"{name}_confidence"] = labels.masked_fill(is_tied, -1), confidence
        if (weights := pseudo.crop_weights) is not None:
            self.meta["n_crops"] = weights.shape[1]
            columns["crop_weight_max"] = weights.amax(1)
            columns["crop_effective"] = torch.special.entr(weights).sum(1).exp()
        self._guesses.append((event.epoch, columns))
        self._keep_sources(event)

    def _keep_sources(self, event: StepFinished) -> None:
        """Full source logits, of the last epoch only: the gamma what-if needs them."""
        if event.epoch != self._source_epoch:
            self._source_epoch, self._sources, self._logits = event.epoch, {}, {}
        self.meta["sources"] = list(event.pseudo.sources)
        numbers = self.meta["n_images"] * event.pseudo.probs.shape[-1]
        if numbers > MAX_SOURCE_LOGITS:
            return
        rows = {"index": event.index.clone(), "target": event.target.clone()}
        rows.update((name, logits.to(torch.float16, copy=True)) for name, logits in event.pseudo.sources.items())
        votes = event.pseudo.crop_votes
        if votes is not None and numbers * votes.logits.shape[1] <= MAX_SOURCE_LOGITS:
            rows["crop_similarity"], rows["crop_gram"] = votes.similarity.clone(), votes.gram.clone()
            rows["crop_logits"] = votes.logits.to(torch.float16, copy=True)
        for name, values in rows.items():
            self._logits.setdefault(name, []).append(values)

    def _epoch_finished(self, event: EpochFinished) -> None:
        self._flush_steps()
        if event.metrics:
            rows = [(event.epoch, name, value) for name, value in event.metrics.items()]
            self._tables["epochs"].append(pd.DataFrame(rows, columns=["epoch", "metric", "value"]))
        if event.predictions is not None:
            confidence, labels = event.predictions.probs.max(-1)
            self._tables["predictions"].append(
                pd.DataFrame(
                    {
                        "epoch": event.epoch,
                        "index": _numpy(event.predictions.index),
                        "prediction": _numpy(labels),
                        "confidence": _numpy(confidence),
                        "target": _numpy(event.predictions.target),
                    }
                )
            )
            self._keep_embeddings(event.predictions)
        for kind, maps in event.explanation.items():
            self._growing.setdefault(f"probe/{kind}", []).append(_numpy(maps).astype(np.float32))
        for name, classifier in event.snapshot.items():
            self._growing.setdefault(f"snapshot/{name}", []).append(_numpy(classifier).astype(np.float32))

    def _keep_embeddings(self, predictions: Predictions) -> None:
        """Where the images are, of so many as fit: at every epoch, so that they can be seen to move."""
        if predictions.embeddings is None:
            return
        n = len(predictions.embeddings)
        chosen = np.unique(np.linspace(0, n - 1, min(n, MAX_EMBEDDED)).round().astype(int))
        self._fixed["embeddings/index"] = _numpy(predictions.index)[chosen]
        self._fixed["embeddings/target"] = _numpy(predictions.target)[chosen]
        self._growing.setdefault("embeddings/images", []).append(_numpy(predictions.embeddings)[chosen])

    def _run_finished(self, event: RunFinished) -> None:
        self.meta.update(status=event.status, seconds=round(event.seconds, 3))
        if event.gallery is None:
            return
        gallery = event.gallery
        self._fixed.update(_probe_arrays("gallery", gallery.probe))
        confidence, labels = gallery.probs.max(-1)
        self._fixed["gallery/probs"] = _numpy(gallery.probs)
        self._fixed["gallery/prediction"] = _numpy(labels)
        self._fixed["gallery/confidence"] = _numpy(confidence)
        for kind, maps in gallery.explanation.items():
            self._fixed[f"gallery/{kind}"] = _numpy(maps).astype(np.float32)
        for name, probs in gallery.branches.items():
            self._fixed[f"gallery/branch/{name}"] = _numpy(probs)
        if gallery.examples is not None and gallery.example_labels is not None:
            self._fixed["examples/images"] = _pixels(gallery.examples)
            self._fixed["examples/label"] = _numpy(gallery.example_labels)
        self._keep_suspects(gallery)
        self.meta["gallery_sentences"] = [list(row) for row in gallery.sentences]
        if (votes := gallery.votes) is not None:
            for name, values in {"index": votes.index, "labels": votes.labels, "votes": votes.votes}.items():
                self._fixed[f"cache/{name}"] = _numpy(values)
        if gallery.voters is not None:
            self._fixed["cache/images"] = np.stack([_pixels(images) for images in gallery.voters])

    def _keep_suspects(self, gallery: Gallery) -> None:
        """Thumbnails of the images worth a look, which only now are known: a number in a list shows nothing."""
        from clipviz.figures import suspects_info  # plotly is half a second that only a run's end needs

        found = suspects_info(self.trace())
        learned = {item.number for item in found.flipped} | {item.number for item in found.disputed}
        for part, numbers in (("measured", {item.number for item in found.wrong}), ("learned", learned)):
            index = sorted(numbers)
            if (images := gallery.thumbnails(part, index)) is not None:
                self._fixed[f"suspects/{part}/images"] = _pixels(images)
                self._fixed[f"suspects/{part}/index"] = np.array(index)

    def _flush_steps(self) -> None:
        """Read what the steps told off the device: once per epoch, or whenever somebody asks for the trace."""
        if self._losses:
            rows = [(epoch, step, term, float(value)) for epoch, step, term, value in self._losses]
            self._tables["steps"].append(pd.DataFrame(rows, columns=["epoch", "step", "term", "value"]))
        for epoch, steps in groupby(self._guesses, itemgetter(0)):
            parts = [columns for _, columns in steps]
            joined = {name: _numpy(torch.cat([part[name] for part in parts])) for name in parts[0]}
            self._tables["samples"].append(pd.DataFrame({"epoch": epoch, **joined}))
        for name, values in self._logits.items():
            self._sources.setdefault(name, []).append(_numpy(torch.cat(values)))
        self._losses, self._guesses, self._logits = [], [], {}


def _probe_arrays(prefix: str, probe: Probe) -> dict[str, np.ndarray]:
    arrays = {
        f"{prefix}/images": _pixels(probe.images),
        f"{prefix}/index": _numpy(probe.index),
        f"{prefix}/target": _numpy(probe.target),
    }
    if probe.parts is not None:
        arrays[f"{prefix}/parts"] = _numpy(probe.parts)
    return arrays


def _pixels(images: Tensor) -> np.ndarray:
    """(P, 3, S, S) in [0, 1] as (P, S, S, 3) uint8."""
    return (_numpy(images).transpose(0, 2, 3, 1) * 255.0 + 0.5).astype(np.uint8)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
