"""Recorder: events in, trace out. The one module that imports both stems."""

import io
from collections.abc import Callable, Iterable
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from clipviz.events import EpochFinished, Event, Exploration, Predictions, Probe, RunFinished, RunStarted, StepFinished
from clipviz.ops import margin
from clipviz.trace import TABLES, Trace, is_by_epoch
from clipviz.trace.schema import SHEET_COLUMNS, under

MAX_SOURCE_LOGITS = 10_000_000
"""Source logits of the last epoch are kept up to so many numbers per source (20 MB of float16)."""

MAX_EMBEDDED = 512
"""The embeddings of so many evaluation images are kept, spread evenly, at every epoch (float16)."""


def record(events: Iterable[Event], *listeners: Callable[[Event], None]) -> Trace:
    """Record a run in a trace; listeners get every event after it is recorded.

    Ctrl-C (or the notebook's stop button) ends the run at a step boundary; what was recorded is returned.
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
    """A listener that builds a trace, or continues the trace of an interrupted run."""

    def __init__(self, trace: Trace | None = None) -> None:
        start, self._is_resumed = trace or Trace(), trace is not None
        self.meta: dict[str, Any] = dict(start.meta)
        tables = ((name, getattr(start, name)) for name in TABLES)
        self._tables: dict[str, list[pd.DataFrame]] = {name: [table] if len(table) else [] for name, table in tables}
        fixed = dict(start.arrays)
        self._growing = {name: list(fixed.pop(name)) for name in start.arrays if is_by_epoch(name)}
        begun = bool(self._growing) or len(start.epochs) > 0
        self._kinds = self._growing.keys() - {"embeddings/images"} if begun else None
        self._sources = {name: [fixed.pop(f"sources/{name}")] for name in under(start.arrays, "sources/")}
        self._fixed = fixed
        # What steps told since the last flush, still on the device: reading it at every step would wait for every step.
        self._losses: list[tuple[int, int, str, Tensor]] = []
        self._guesses: list[tuple[int, dict[str, Tensor]]] = []
        self._logits: dict[str, list[Tensor]] = {}
        self._rounded: set[str] = set()
        self._source_epoch = int(start.samples["epoch"].iloc[-1]) if len(start.samples) else -1

    def __call__(self, event: Event) -> None:
        """Take one event in."""
        takes: dict[type, Any] = {
            RunStarted: self._run_started, StepFinished: self._step_finished,
            EpochFinished: self._epoch_finished, RunFinished: self._run_finished,
        }  # fmt: skip
        takes[type(event)](event)

    def trace(self) -> Trace:
        """The trace so far."""
        self._flush_steps()
        tables = {name: pd.concat(parts, ignore_index=True) for name, parts in self._tables.items() if parts}
        growing = {name: np.stack(rows) for name, rows in self._growing.items()}
        sources = {f"sources/{name}": np.concatenate(rows) for name, rows in self._sources.items()}
        return Trace(**tables, arrays={**self._fixed, **growing, **sources}, meta=dict(self.meta))

    def _run_started(self, event: RunStarted) -> None:
        meta = dict(event.meta)
        skipped = meta.pop("skipped", [])
        known = {"class_names": list(event.class_names), "n_images": event.n_images, "seconds": event.seconds or None}
        self.meta.update(meta, **known, n_steps=event.n_steps, status="running", error=None)
        if self._is_resumed:
            return  # probe and skipped files are known
        if skipped:
            self._tables["skipped"].append(pd.DataFrame(skipped, columns=["path", "reason"]))
        if event.probe is not None:
            self._fixed.update(_probe_arrays("probe", event.probe))

    def _step_finished(self, event: StepFinished) -> None:
        if event.losses:
            for term, value in {**event.losses, "loss": torch.stack(list(event.losses.values())).sum()}.items():
                self._losses.append((event.epoch, event.step, term, value))
        names, method = [*event.pseudo.sources], self.meta.get("method")
        if event.epoch == self._source_epoch and names != (was := self.meta.get("sources", names)):
            raise ValueError(f"sources of {method} were {was}, at step {event.step} {names}; keep their names")
        pseudo, probs = event.pseudo, event.pseudo.probs.float()  # pandas has no quantiles of half precision
        columns = {  # copies, because a method may write into what it gave
            "index": event.index.clone(), "pseudo_label": pseudo.labels.clone(), "confidence": probs.amax(-1),
            "margin": margin(probs), "weight": pseudo.weights.float().clone(), "target": event.target.clone(),
        }  # fmt: skip
        for name, logits in pseudo.sources.items():
            confidence, labels = logits.float().softmax(-1).max(-1)
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
        rows.update((name, logits.to(torch.float32, copy=True)) for name, logits in event.pseudo.sources.items())
        crops = event.pseudo.crop_logits
        if crops is not None and numbers * crops.logits.shape[1] <= MAX_SOURCE_LOGITS:
            rows["crop_similarity"], rows["crop_gram"] = crops.similarity.clone(), crops.gram.clone()
            rows["crop_logits"] = crops.logits.to(torch.float32, copy=True)
        many = event.pseudo.sources if numbers > 1_000_000 else ()  # rounded, one label in 200 may be another
        self._rounded = {"crop_logits", *many}
        for name, values in rows.items():
            self._logits.setdefault(name, []).append(values)

    def _epoch_finished(self, event: EpochFinished) -> None:
        self._flush_steps()
        if event.metrics:
            self._add("epochs", event.epoch, {"metric": [*event.metrics], "value": [*event.metrics.values()]})
        if event.predictions is not None:
            said = event.predictions
            confidence, labels = said.probs.max(-1)
            rows = {"index": said.index, "prediction": labels, "confidence": confidence, "target": said.target}
            rows["margin"] = margin(said.probs)
            self._add("predictions", event.epoch, {name: _numpy(values) for name, values in rows.items()})
            self._keep_embeddings(said)
        if event.exploration is not None:
            self._keep_exploration(event.exploration, "before" if event.epoch < 0 else "after")
        kept = {f"probe/{kind}": _numpy(maps).astype(np.float32) for kind, maps in event.explanation.items()}
        kept |= {f"snapshot/{name}": _numpy(each).astype(np.float32) for name, each in event.snapshot.items()}
        known = kept.keys() if self._kinds is None else self._kinds
        self._kinds = known & kept.keys()  # what was registered, or forgotten, midway lacks epochs
        for name in known - self._kinds:
            del self._growing[name]
        for name in [name for name in kept if name in self._kinds]:
            before, now = self._growing.setdefault(name, []), kept[name]
            if before and (was := before[0].shape) != now.shape:
                raise ValueError(f"{name} of {self.meta['method']} was {was}, now it is {now.shape}; keep its shape")
            before.append(now)

    def _add(self, table: str, epoch: int, columns: dict[str, Any]) -> None:
        self._tables[table].append(pd.DataFrame({"epoch": epoch, **columns}))

    def _keep_embeddings(self, predictions: Predictions) -> None:
        """Where the images are, of so many as fit: at every epoch, so that they can be seen to move."""
        if predictions.embeddings is None:
            return
        n = len(predictions.embeddings)
        chosen = np.unique(np.linspace(0, n - 1, min(n, MAX_EMBEDDED)).round().astype(int))
        self._fixed["embeddings/index"] = _numpy(predictions.index)[chosen]
        self._fixed["embeddings/target"] = _numpy(predictions.target)[chosen]
        self._growing.setdefault("embeddings/images", []).append(_numpy(predictions.embeddings)[chosen])

    def _keep_exploration(self, seen: Exploration, moment: str) -> None:
        """Maps as bytes, each from its least to its greatest value if it has two; of what the method says the last."""
        for kind, maps in ((kind, maps.float()) for kind, maps in seen.maps.items()):
            low, high = maps.amin((1, 2), True), maps.amax((1, 2), True)
            shares = torch.where(high > low, (maps - low) / (high - low), maps.clamp(0, 1)).nan_to_num(0.0)
            self._fixed[f"exploration/{moment}/{kind}"] = _numpy((shares * 255 + 0.5).to(torch.uint8))
        rows = {"index": seen.index, "target": seen.target, "top": seen.top, "probs": seen.probs.half()}
        rows |= {f"logits/{k}": v.half() if v.abs().amax() < 65_504 else v.float() for k, v in seen.logits.items()}
        self._fixed.update((f"exploration/{name}", _numpy(values)) for name, values in rows.items())
        self.meta["exploration_sentences"] = [list(row) for row in seen.sentences]
        if seen.images is not None:
            sheet, file = _pixels(make_grid(seen.images, SHEET_COLUMNS, padding=0)[None])[0], io.BytesIO()
            Image.fromarray(sheet).save(file, "JPEG", quality=85)
            self._fixed["exploration/sheet"] = np.frombuffer(file.getvalue(), np.uint8)

    def _run_finished(self, event: RunFinished) -> None:
        self.meta.update(status=event.status, seconds=round(event.seconds, 3))
        if (found := event.highlights) is None:
            return
        confidence, labels = found.probs.max(-1)
        rows = {"probs": found.probs, "prediction": labels, "confidence": confidence}
        rows |= {kind: maps.float() for kind, maps in found.explanation.items()}
        rows |= {f"branch/{name}": probs for name, probs in found.branches.items()}
        self._fixed.update(_probe_arrays("gallery", found.probe))
        self._fixed.update((f"gallery/{name}", _numpy(values)) for name, values in rows.items())
        if found.examples is not None and found.example_labels is not None:
            self._fixed["examples/images"] = _pixels(found.examples)
            self._fixed["examples/label"] = _numpy(found.example_labels)
        self.meta["gallery_sentences"] = [list(row) for row in found.sentences]
        if found.cache is not None:
            entries = {"index": found.cache.index, "labels": found.cache.labels, "votes": found.cache.contributions}
            self._fixed.update((f"cache/{name}", _numpy(values)) for name, values in entries.items())
        if found.cache_images is not None:
            self._fixed["cache/images"] = np.stack([_pixels(images) for images in found.cache_images])

    def _flush_steps(self) -> None:
        """Read what the steps told off the device: once per epoch, or whenever somebody asks for the trace."""
        if self._losses:
            rows = [(epoch, step, term, float(value)) for epoch, step, term, value in self._losses]
            self._tables["steps"].append(pd.DataFrame(rows, columns=["epoch", "step", "term", "value"]))
        for epoch, steps in groupby(self._guesses, itemgetter(0)):
            parts = [columns for _, columns in steps]
            self._add("samples", epoch, {name: _numpy(torch.cat([part[name] for part in parts])) for name in parts[0]})
        for name, values in self._logits.items():
            kept = _numpy(torch.cat(values))
            is_rounded = name in self._rounded and np.abs(kept).max() < 65_504  # else half precision has no such number
            self._sources.setdefault(name, []).append(kept.astype(np.float16) if is_rounded else kept)
        self._losses, self._guesses, self._logits = [], [], {}


def _probe_arrays(prefix: str, probe: Probe) -> dict[str, np.ndarray]:
    rows = {"index": probe.index, "target": probe.target, **({} if probe.parts is None else {"parts": probe.parts})}
    return {f"{prefix}/images": _pixels(probe.images), **{f"{prefix}/{k}": _numpy(v) for k, v in rows.items()}}


def _pixels(images: Tensor) -> np.ndarray:
    """(P, 3, S, S) in [0, 1] as (P, S, S, 3) uint8."""
    return (_numpy(images).transpose(0, 2, 3, 1) * 255.0 + 0.5).astype(np.uint8)


def _numpy(tensor: Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().cpu().numpy()
