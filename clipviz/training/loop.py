"""The loop: `adapt` is an iterator of events, and all of training is `Adaptation.__iter__`."""

import math
import platform
import time
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from importlib import metadata
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from clipviz import events
from clipviz.backbone.ownership import lock_of, preserved_state
from clipviz.data.base import Batch, ImageDataset, ViewConfig, Views
from clipviz.data.batches.features import FeatureDataset, FeatureLoader
from clipviz.data.batches.loader import ViewLoader
from clipviz.errors import one_line, whole_number
from clipviz.methods.base import AdaptConfig, Method, ask
from clipviz.parallel import ONE, Ranks
from clipviz.training.evaluate import accuracy, baseline_accuracies, evaluation_inputs, predict
from clipviz.training.highlights import explained, explore, highlights
from clipviz.training.refusals import check_guesses, check_labels, check_shares, check_storable, check_terms, suspects

MEASURED = 200_000
"""Larger evaluation sets are measured before and after training only, smaller ones after every epoch as well."""


class Options(TypedDict, total=False):
    """What a run can be given beside its method, its images and its schedule."""

    eval_dataset: ImageDataset | None  # images to measure on before training and after every epoch; None: none
    probe: events.Probe | Tensor | None  # images to follow through the run: a `Probe`, or (P, 3, S, S) in [0, 1]
    seed: int  # order of the images and all views, from 0
    ranks: Ranks  # the processes that share each batch (`clipviz.parallel`); all of them get all events


def adapt(
    method: Method, dataset: ImageDataset, config: AdaptConfig | None = None, **options: Unpack[Options]
) -> Iterator[events.Event]:
    """Adapt a method to unlabeled images, as an iterator of events.

    Nothing happens before the first `next`. Leaving the `for` loop stops the run between two steps. Targets of the
    datasets reach the events, never the method.

    Args:
        method: from `METHODS`; changed in place. A trained method continues from its state; only one run at a time.
        dataset: the images to learn from.
        config: the schedule; default: the one the method recommends.
        options: see `Options`.

    Yields:
        `RunStarted`, `EpochFinished` for the state before training (epoch -1), then for every epoch its
        `StepFinished`s and an `EpochFinished`, and at last `RunFinished`.

    Raises:
        ValueError: at once, for what is not a method or not a schedule, or a dataset without images.
        FloatingPointError: if the loss is not finite (the step and its terms are named), or the weights are not.
    """
    return iter(Adaptation(method, dataset, config, **options))


class Adaptation:
    """One run as an object: what `adapt` iterates over, with the state a checkpoint needs.

    Attributes:
        epoch: the current epoch, or the next one; set it (with the state of method and optimizer) to resume.
        steps_in_epoch: steps done in this epoch; set it to resume, too.
        epoch_totals: sums over the steps of the epoch so far; the same.
        seconds_before: wall seconds of the sessions before this one; the same.
        optimizer: AdamW over the method's trainable parameters; None for methods that do not train.
    """

    def __init__(
        self, method: Method, dataset: ImageDataset, config: AdaptConfig | None = None, *,
        eval_dataset: ImageDataset | None = None, probe: events.Probe | Tensor | None = None, seed: int = 0,
        ranks: Ranks = ONE,
    ) -> None:  # fmt: skip
        if not isinstance(method, Method):
            raise ValueError(
                f"adapt needs a method that was built, got {one_line(repr(method))}; for example "
                'METHODS["dpa"](load_backbone("birds"), dataset.prompts)'
            )
        if not isinstance(config, AdaptConfig | None):
            came = one_line(repr(config))
            raise ValueError(f"adapt needs an AdaptConfig, got {came}; a method's constants go into the method")
        check_labels(method, dataset, eval_dataset)
        self.method, self.dataset, self.eval_dataset = method, dataset, eval_dataset
        self.ranks, self.config = ranks, config or method.schedule
        if ranks.size > 1:
            check_shares(method, dataset, self.config, ranks)
        if method.trains and self.config.lr < self.config.min_lr:
            warnings.warn(
                f"the learning rate {self.config.lr:g} is below the schedule's floor {self.config.min_lr:g}, so it "
                "stays constant; the authors' code lets it rise to the floor", stacklevel=3,
            )  # fmt: skip
        self.settings = method.settings  # as the run began; some may be adjusted on the way
        self.seed = whole_number("seed", seed, 0)
        check_storable({"method": self.settings, "schedule": asdict(self.config)})
        if isinstance(probe, Tensor):
            probe = events.Probe(probe, torch.arange(len(probe)), torch.full((len(probe),), events.UNLABELLED))
        if not isinstance(probe, events.Probe | None):
            raise ValueError(f"probe must be images, (P, 3, S, S) in [0, 1], or a Probe, got {type(probe).__name__}")
        if probe is not None and dataset.has_pixels:
            method.backbone.check_images(probe.images)
        self.probe = probe
        self.epoch = self.steps_in_epoch = 0
        self.seconds_before = 0.0
        self.loader = self._loader(method.needs)
        self.batches: Any = self.loader  # what training draws from; a method may bring its own after `prepare`
        self.evolves = method.trains or method.labels_are is not None
        self.n_epochs = method.epochs = self.config.epochs if self.evolves else 1
        self.n_steps = self.n_epochs * len(self.loader)
        self.optimizer: torch.optim.AdamW | None = None
        if method.trains:
            self.optimizer = torch.optim.AdamW(
                method.parameter_groups(self.config.weight_decay), lr=self.config.lr, betas=(0.9, 0.999), eps=1e-8
            )
        self.epoch_totals: dict[str, list[Tensor]] = {}
        self._targets = torch.tensor(dataset.targets).to(method.backbone.device)  # there, so that no step waits
        self._before: events.EpochFinished | None = None  # of a method that does not change: measured once
        self._evaluated: ImageDataset | None = None
        self._explored: events.Exploration | None = None  # before training; a run that was taken up has seen it

    def claim(self) -> None:
        """Reserve the method until `release`, or until this object is gone; refused if another run has it."""
        owner = self.method.adapted_by and self.method.adapted_by()
        if owner is not None and owner is not self and owner.method is self.method:  # a copy has the original's owner
            raise ValueError(
                f"another run or iterator is adapting this {self.method.name}; wait for its end, stop it (an iterator: "
                "close() it), or build another method"
            )
        self.method.adapted_by = weakref.ref(self)

    def release(self) -> None:
        """Free the method for another run, which may continue from what it has learned."""
        if self.method.adapted_by and self.method.adapted_by() is self:
            self.method.adapted_by = None

    def __iter__(self) -> Iterator[events.Event]:
        """The events of the run, while which the method is nobody else's."""
        if torch.is_inference_mode_enabled() or torch.is_autocast_enabled(self.method.backbone.device.type):
            raise ValueError(
                "no run can go on within torch.inference_mode() or torch.autocast(); leave the block first"
            )
        self.claim()
        try:
            yield from self._events()
        finally:
            self.release()

    def _events(self) -> Iterator[events.Event]:
        begun, method = time.perf_counter(), self.method
        if is_resumed := self.epoch > 0 or self.steps_in_epoch > 0:
            self._take_batches()
        yield events.RunStarted(
            method.name, self.facts(), method.class_names, len(self.dataset), self.n_epochs, self.n_steps, self.probe,
            self._steps_before(self.epoch) + self.steps_in_epoch, self.seconds_before,
        )  # fmt: skip
        self.ranks.copy_from_first([*method.parameters(), *method.buffers()])
        if not is_resumed:
            with lock_of(method):
                method.eval()
            unlabeled = (replace(b, target=torch.full_like(b.target, events.UNLABELLED)) for b in self.loader.epoch(0))
            with torch.no_grad():
                method.prepare(unlabeled)
            yield self._measured(-1)
        self._take_batches()
        last: events.EpochFinished | None = None
        for epoch in range(self.epoch, self.n_epochs):
            with self._owned():
                if self.steps_in_epoch == 0:
                    ask(method, "begin_epoch")
            for i, batch in enumerate(self.batches.epoch(epoch, self.steps_in_epoch), self.steps_in_epoch):
                finished = self._step(batch, epoch, self._steps_before(epoch) + i)
                self.steps_in_epoch = i + 1
                yield finished
            with self._owned(), torch.no_grad():
                ask(method, "end_epoch")
            self._check_weights(epoch)
            self.epoch, self.steps_in_epoch = epoch + 1, 0
            last = self._measured(epoch)
            yield last
        found = self._highlights(last.predictions if last else None)
        yield events.RunFinished("finished", self.seconds_before + time.perf_counter() - begun, found)

    def _take_batches(self) -> None:
        """What there is to draw from, and how many steps, once the method is prepared."""
        needs = getattr(self.method, "training_needs", self.method.needs)
        of_views = self.loader if needs == self.method.needs else self._loader(needs)
        self.batches = ask(self.method, "training_batches", self.config.batch_size, self.seed, otherwise=of_views)
        self.n_steps = self._steps_before(self.n_epochs)

    def _steps_before(self, epoch: int) -> int:
        """Steps of all epochs before one; slices of a stream have a count of their own."""
        own = getattr(self.batches, "steps_before", None)
        return own(epoch) if own else epoch * len(self.batches)

    @contextmanager
    def _owned(self) -> Iterator[None]:
        """Nobody else is at the model, and it is in training mode: a listener may have looked in eval mode."""
        with lock_of(self.method):
            self.method.train(self.method.trains)
            yield

    def _step(self, batch: Batch, epoch: int, step: int) -> events.StepFinished:
        with self._owned():
            with torch.no_grad():
                pseudo = self._guesses(batch)
            if not self.optimizer:
                _check_finite(self.method, f"the pseudo-labels of step {step} are not finite", pseudo.probs)
            losses = self._learn(batch.views, pseudo, step) if self.optimizer else {}
        target = self._targets[batch.index]  # which no method has seen
        for name, values in {**pseudo.metrics, "labels": pseudo.labels, "targets": target}.items():
            self.epoch_totals.setdefault(name, []).append(values)
        return events.StepFinished(epoch, step, batch.index, target, pseudo, losses)

    def _loader(self, needs: ViewConfig) -> ViewLoader | FeatureLoader:
        """Batches of the views that a method needs, or of embeddings where the data are embeddings."""
        config, data, backbone = self.config, self.dataset, self.method.backbone
        if isinstance(data, FeatureDataset):
            return FeatureLoader(data, config.batch_size, self.seed, backbone.device)
        views = replace(needs, size=backbone.image_size)
        return ViewLoader(data, views, config.batch_size, self.seed, config.workers, backbone.device, self.ranks)

    def _guesses(self, batch: Batch) -> events.PseudoLabels:
        """Pseudo-labels of a batch, of which this process may have a share of the views only."""
        pseudo = self.method.pseudo_label(batch.views, batch.index)
        check_guesses(self.method, pseudo, len(batch))
        return pseudo

    @torch.enable_grad()
    def _learn(self, views: Views, pseudo: events.PseudoLabels, step: int) -> dict[str, Tensor]:
        """One optimizer step at the learning rate of the cosine schedule."""
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = group.get("lr_scale", 1.0) * cosine_lr(step, self.n_steps, self.config)
        losses = self.method.loss(views, pseudo)
        check_terms(self.method, losses)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total + pseudo.probs.sum()):
            terms = ", ".join(f"{name} = {value.item():.4g}" for name, value in losses.items())
            what = "the pseudo-labels are not finite" if torch.isfinite(total) else "the loss is not finite"
            slower = f"try a smaller learning rate than {self.config.lr:g}; if that does not help, "
            why = slower * self.method.has_learned + suspects(self.method)
            raise FloatingPointError(f"{what} at step {step} (epoch {step // len(self.batches)}): {terms}; {why}")
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.ranks.average_gradients(p for group in self.optimizer.param_groups for p in group["params"])
        self.optimizer.step()
        self.method.has_learned = True
        return {name: value.detach() for name, value in losses.items()}

    def _check_weights(self, epoch: int) -> None:
        """Weights can turn NaN in an epoch's last step, where no later loss would tell; no checkpoint may keep them."""
        bad = [name for name, p in self.method.named_parameters() if p.requires_grad and not torch.isfinite(p).all()]
        if bad:
            raise FloatingPointError(
                f"weights are not finite after epoch {epoch} ({len(bad)} tensors, first {bad[0]!r}); "
                f"try a smaller learning rate than {self.config.lr:g}"
            )

    def _total(self) -> dict[str, float]:
        columns = {name: torch.cat(values).cpu() for name, values in self.epoch_totals.items()}
        self.epoch_totals = {}
        labels, targets = columns.pop("labels", None), columns.pop("targets", None)
        metrics = {name: float(values.float().mean()) for name, values in sorted(columns.items())}
        if labels is not None and targets is not None and self.dataset.has_targets:
            metrics["pseudo_label_accuracy"] = accuracy(labels, targets)
        return metrics

    def _measured(self, epoch: int) -> events.EpochFinished:
        """Evaluate and explain the probe; a method that does not train is measured once."""
        metrics = self._total()
        if self._before is not None:
            return replace(self._before, epoch=epoch, metrics={**metrics, **self._before.metrics})
        metrics.update((name, float(x)) for name, x in ask(self.method, "diagnostics", otherwise={}).items())
        predictions = seen = None
        if self.eval_dataset is not None and (epoch in (-1, self.n_epochs - 1) or len(self.eval_dataset) <= MEASURED):
            predictions = self._predictions(self.eval_dataset)
            if epoch in (-1, self.n_epochs - 1):
                self._explored = seen = explore(self.method, self.eval_dataset, predictions, self._explored)
            if self.eval_dataset.has_targets:
                guesses = {"": predictions.probs.argmax(-1), **{f"_{k}": v for k, v in predictions.branches.items()}}
                metrics.update((f"accuracy{k}", accuracy(v, predictions.target)) for k, v in guesses.items())
            if epoch == -1:
                metrics.update(baseline_accuracies(self.method, self.eval_dataset, ranks=self.ranks))
        maps: dict[str, Tensor] = {}
        with preserved_state(self.method):
            if self.probe is not None:
                images = self.probe.images.to(self.method.backbone.device)
                maps = {kind: value.cpu() for kind, value in explained(self.method, images).items()}
            given = ask(self.method, "snapshot", otherwise={})
            snapshot = {name: value.detach().cpu().clone() for name, value in given.items()}
        event = events.EpochFinished(epoch, metrics, predictions, snapshot, maps, seen)
        self._before = None if self.evolves else event
        return event

    def _predictions(self, dataset: ImageDataset) -> events.Predictions:
        """Of the same inputs at every call, so that a run that is taken up after its last epoch says the same bits."""
        self._evaluated = self._evaluated or evaluation_inputs(self.method, dataset, self.ranks)
        found = predict(self.method, self._evaluated, ranks=self.ranks, branches=dataset.has_targets)
        _check_finite(self.method, "the predictions are not finite", found.probs)
        return found

    def _highlights(self, predictions: events.Predictions | None) -> events.Highlights | None:
        """The instructive images; `predictions` are missing where a run is taken up after its last epoch."""
        if self.eval_dataset is None:
            return None
        predictions = predictions or self._predictions(self.eval_dataset)
        return highlights(self.method, self.eval_dataset, predictions, self.dataset)

    def facts(self) -> dict[str, Any]:
        """All settings of this run as JSON values: the metadata of its trace."""
        method, data, evaluation = self.method, self.dataset, self.eval_dataset
        digests = [each.digest for each in (data, evaluation) if isinstance(each, FeatureDataset)]
        shown = [d.identity["contents"] for d in (data, evaluation) if d and len(d) <= len(data)]
        transductive = shown[1:] == shown[:1] or digests[1:] == digests[:1] != []  # whatever names the images have
        origins = {"model": method.backbone.origin, "data": data.origin}
        sentences = "descriptions" if method.prompts.descriptions_given else "names"
        return {
            "method": method.name,
            "model": method.backbone.name,
            "model_built": method.backbone.built,  # what was asked for is in origins
            "data": data.name,
            "split": data.split,
            "eval_data": evaluation.name if evaluation else None,
            "eval_split": evaluation.split if evaluation else None,
            "accuracy_is": None if evaluation is None else "transductive" if transductive else "test",
            "seed": self.seed,
            "epochs": self.n_epochs if self.evolves else 0,
            "labels_are": method.labels_are,
            "preset": method.preset_name,
            "classes_from": sentences if method.backbone.reads_text else "classifier",
            "embeddings": "/".join(digests) or None,
            "settings": {"method": self.settings, "schedule": asdict(self.config)},
            "descriptions": data.prompts.source or f"{sum(map(len, data.prompts.descriptions.values()))} sentences",
            "texts": data.prompts.digest,
            "gamma": self.settings.get("gamma"),
            "origins": {**origins, "eval_data": evaluation.origin if evaluation else None},
            "part_names": list(data.part_names) if data.part_names else [],
            "skipped": [(s.path, s.reason) for s in data.skipped],
            "files": {"learned": data.file_names, "measured": evaluation.file_names if evaluation else []},
            "device": str(method.backbone.device),
            "processes": self.ranks.size,
            "precision": method.backbone.precision,
            "versions": versions(),
        }


def _check_finite(method: Method, what: str, probs: Tensor) -> None:
    if not math.isfinite(float(probs.sum())):
        raise ValueError(f"{what}: {suspects(method)}")


def cosine_lr(step: int, n_steps: int, config: AdaptConfig) -> float:
    """Learning rate of a step: m + (lr - m)/2 (1 + cos(pi t / T)) with m = min(min_lr, lr), no warm-up."""
    low = min(config.min_lr, config.lr)
    return low + 0.5 * (config.lr - low) * (1.0 + math.cos(math.pi * step / n_steps))


version = cache(metadata.version)  # which would read the description of a package each time


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that affect the numbers."""
    packages = ("clipviz", "torch", "torchvision", "open_clip_torch", "timm", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
