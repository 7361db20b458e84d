"""A reopened run folder: its trace at once and without torch; its model and its images on demand.

All of it is built from the folder alone: `config.json` records the settings and where everything came from, the
checkpoint what was learned and from which data. A one-line error says what is not available.
Nothing in the folder is executed, and nothing is written to it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from inspect import isclass, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clipviz.errors import one_line, parse_json
from clipviz.files import read_text
from clipviz.trace import Trace

if TYPE_CHECKING:
    from clipviz.backbone import Backbone
    from clipviz.data.base import ImageDataset
    from clipviz.methods.base import Method
    from clipviz.prompts import ClassPrompts
    from clipviz.training.checkpoint import CheckpointFacts
    from clipviz.training.model_probe import ModelProbe
    from clipviz.widgets.explore import Explorers

T = TypeVar("T")

_CONFIG, _CHECKPOINT = "config.json", "checkpoint.safetensors"
_AGREE = ("method", "model", "data", "split", "eval_data", "eval_split", "settings", "class_names", "texts", "origins")


def open(
    folder: str | os.PathLike[str], *, epoch: int | None = None,
    data: str | os.PathLike[str] | ImageDataset | None = None,
    eval_data: str | os.PathLike[str] | ImageDataset | None = None, root: str | os.PathLike[str] | None = None,
    model: Backbone | None = None, method: Callable[..., Method] | None = None, device: str | None = None,
) -> OpenedRun:  # fmt: skip
    """Open a run folder, of the command line or of `Run(folder=...)`.

    Args:
        folder: the run folder; it is only read.
        epoch: the epoch whose weights to load, -1 before training; None: the newest.
        data: where the images are now, or a data set, if they moved or were not loaded by `load_dataset`; they must be
            those of the run.
        eval_data: the same for the evaluation images.
        root: where the folder of benchmarks is now, or the folder of the images of a split file.
        model: the model that was adapted, if it was not loaded by `load_backbone`.
        method: the class of the method, if it is not part of clipviz.
        device: for the model; None: the CPU.

    Raises:
        ValueError: if the folder holds no readable trace, or the weights of the epoch were not kept.
    """
    given = {"data": data, "eval_data": eval_data, "root": root, "model": model, "method": method, "device": device}
    run = OpenedRun(Trace.load(folder), given)
    return run if epoch is None else run.at(epoch)


def explore(*folders: str | os.PathLike[str], **given: Any) -> Explorers:
    """Open runs in linked explorers: images and maps, prototypes, mixtures.

    Args:
        folders: run folders with the same classes; others are shown beside the first.
        given: as for `clipviz.open`; what is not available is reported and left out.
    """
    from clipviz.widgets.explore import Explorers

    runs = [open(folder, **given) for folder in folders]
    return Explorers([run.trace for run in runs], [_or_none(run, "model_probe") and run for run in runs])


def _or_none(run: OpenedRun, part: str) -> Any:
    try:
        return getattr(run, part)
    except (ValueError, OSError) as error:
        warnings.warn(one_line(error, 600), stacklevel=3)
        return None


class _shared(cached_property[T]):
    """A property that is made once for a run, with the weights of whichever epoch it is asked for."""

    def __get__(self, run: Any, owner: type[Any] | None = None) -> Any:
        return super().__get__(None if run is None else run._run, owner)


class OpenedRun:
    """A reopened run: what it recorded, and its model after one of its epochs.

    `config`, `data`, `eval_data`, `backbone`, `method` and `model_probe` are made on first use, and
    raise a `ValueError` if they are not available.

    Attributes:
        trace: what was recorded.
        epoch: the epoch whose weights `method` has, -1 before training; None: the newest.
        folder: the run folder.
    """

    def __init__(
        self, trace: Trace, given: Mapping[str, Any], epoch: int | None = None, run: OpenedRun | None = None
    ) -> None:
        self.trace, self.epoch, self.folder = trace, epoch, Path(trace.folder)
        self._given, self._run = given, run or self
        self._at_work: tuple[Any, ...] = ()  # whose weights are in `_workbench`

    def __repr__(self) -> str:
        moment = "newest weights" if self.epoch is None else f"weights of epoch {self.epoch}"
        return f"OpenedRun({self.trace!r}, {moment})"

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs whose weights are available, -1 before training."""
        return tuple(self._weights)

    def at(self, epoch: int) -> OpenedRun:
        """The same run with the weights of another epoch; a ValueError if these were not kept. All else is shared."""
        if epoch not in self.epochs:
            there = f"there are those of {', '.join(map(str, self.epochs))}" if self.epochs else "there are none"
            raise ValueError(f"the weights of epoch {epoch!r} were not kept in {self.folder}; {there}")
        return OpenedRun(self.trace, self._given, epoch, self._run)

    @cached_property
    def method(self) -> Method:
        """The method with the weights of `epoch`, in eval mode; an object of its own."""
        method = self._build()
        self._load(method)
        return method

    @cached_property
    def model_probe(self) -> ModelProbe:
        """Queries of the views about images, answered by the model of `epoch`; all epochs share one model in memory."""
        from clipviz.backbone.ownership import preserved_state
        from clipviz.training.model_probe import ModelProbe

        self._file.stat()  # a model without weights is refused here, not at the first question
        method, run = self._workbench, self._run

        def ask(question: Callable[[Method], T]) -> T:
            with preserved_state(method):
                if run._at_work != (wanted := (self.epoch, self._file.stat().st_mtime_ns)):
                    self._load(method)
                    run._at_work = wanted
                return question(method)

        return ModelProbe(method, _or_none(self, "data"), _or_none(self, "eval_data"), ask)

    @_shared
    def config(self) -> dict[str, Any]:
        """All settings, from config.json. The trace, whose files are hashed, has most of them, too."""
        path, only = self.folder / _CONFIG, "only what the trace holds can be shown"
        try:
            config = parse_json(read_text(path, path.name))
        except ValueError as error:
            raise ValueError(f"{path}: {one_line(error)}; {only}") from error
        known = config if isinstance(config, dict) else {}
        for key in _AGREE:
            if known.get(key) != self.trace.meta.get(key):
                raise ValueError(f"{path} and the trace beside it differ in {key}; {only}")
        return known

    @_shared
    def data(self) -> ImageDataset:
        """The images that were learned from."""
        return self._dataset("data", "split", "data")

    @_shared
    def eval_data(self) -> ImageDataset | None:
        """The evaluation images; None if nothing was evaluated."""
        config, origins = self.config, self._origins
        if config.get("eval_data") is None:
            return None
        is_same = [config["data"], config["split"]] == [config["eval_data"], config["eval_split"]]
        if is_same and origins.get("data") == origins.get("eval_data") and self._given["eval_data"] is None:
            return self.data
        return self._dataset("eval_data", "eval_split", "evaluation data")

    @property
    def _origins(self) -> dict[str, Any]:
        """The arguments that loaded model and data sets; None of what was made by hand."""
        return self.config.get("origins") or {}

    def _not_loaded(self, what: str, key: str, by: str) -> ValueError:
        name = self.config.get(key)
        return ValueError(f"the {what} of this run, {name!r}, was not loaded by {by}; {self._give(key)}")

    def _give(self, key: str) -> str:
        return f"give it: clipviz.open({str(self.folder)!r}, {key}=...)"

    def _dataset(self, which: str, split: str, called: str) -> ImageDataset:
        from clipviz.data import load_dataset
        from clipviz.data.base import ImageDataset
        from clipviz.training.checkpoint import difference

        given, origin, moved = self._given[which], self._origins.get(which), self._given["data"]
        if isinstance(given, ImageDataset):
            found = given
        elif origin is None and given is None:
            raise self._not_loaded(called, which, "load_dataset")
        else:
            options = {"split": self.config[split], **(origin or {}), "download": False}
            is_beside = options.get("spec") == (self._origins.get("data") or {}).get("spec")
            if given is None and is_beside and isinstance(moved, str | os.PathLike):
                given = moved  # another split of what moved
            changes = {"spec": given, "root": self._given["root"]}
            options |= {key: value for key, value in changes.items() if value is not None}
            try:
                found = load_dataset(**_arguments(load_dataset, options))
            except ValueError as error:
                raise ValueError(f"{error}; if the images moved, {self._give(which)}") from error
        was = self._facts and self._facts.identity[called]
        if was and was != found.identity:
            what = difference(called, was, found.identity)
            raise ValueError(f"{found.name!r} has changed since this run: {what}; {self._give(which)}, as it was then")
        return found

    @_shared
    def backbone(self) -> Backbone:
        """The model before training."""
        from clipviz.backbone import load_backbone
        from clipviz.data.batches.features import FeatureDataset

        model, origin = self._given["model"], self._origins.get("model")
        if model is None and origin is not None:
            model = load_backbone(**_arguments(load_backbone, {**origin, "device": self._given["device"]}))
        if self.config.get("embeddings") and isinstance(self.data, FeatureDataset):
            return self.data.backbone(model)  # its classes are in the file of embeddings, or read by a text tower
        if model is None:
            raise self._not_loaded("model", "model", "load_backbone")
        return model

    @property
    def _prompts(self) -> ClassPrompts:
        from clipviz.prompts import ClassPrompts, short_hash

        texts, path = self.config.get("prompts"), self.folder / _CONFIG
        if texts == "data":  # of a folder of before they were kept
            return self.data.prompts
        try:
            plain: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in texts.items()}
            prompts = ClassPrompts(**plain)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"the prompts in {path} cannot be read: {error}") from error
        known = self._facts and self._facts.identity["prompts or descriptions"]
        if known and known != short_hash([prompts.digest, self.config["texts"]]):
            raise ValueError(f"the prompts in {path} are not those that the run was made with; it was altered")
        return prompts

    @_shared
    def _workbench(self) -> Method:  # for the questions about all epochs
        return self._build()

    def _build(self) -> Method:
        from clipviz.data.batches.sampling import balanced_index
        from clipviz.methods import METHODS
        from clipviz.methods.base import Method

        settings = self.config["settings"]["method"]
        given, config = self._given["method"], self.config
        kind: Any = given or METHODS.get(config["method"])
        if not given and (kind is None or config.get("method_class", kind.__name__) != kind.__name__):
            what = config["method" if kind is None else "method_class"]  # which earlier versions did not note
            raise ValueError(f"{what!r} is not a method of clipviz; {self._give('method')}, its class")
        backbone, prompts, options = self.backbone, self._prompts, {}
        default = kind.default_config(backbone) if isclass(kind) and issubclass(kind, Method) else None
        if default is None and settings:
            default = kind(backbone, prompts).config
        if settings.get("selection") == "oracle_balanced":
            options["oracle_index"] = balanced_index(self.data, settings["shots"], allow_labels=True)
        arguments = [] if default is None else [_restored(default, settings)]
        method: Method = kind(backbone, prompts, *arguments, **options)
        method.preset, method.has_learned = self.config.get("preset"), method.trains
        return method.eval()

    @_shared
    def _facts(self) -> CheckpointFacts | None:
        """What the newest checkpoint belongs to; None before there is one."""
        from clipviz.training.checkpoint import check_same_run, facts_of

        path = self.folder / _CHECKPOINT
        facts = facts_of(path) if path.is_file() else None
        if facts:
            check_same_run(path, facts.identity, self.trace.meta)
        return facts

    @_shared
    def _weights(self) -> dict[int, Path]:
        """Epoch -> the file that has its weights."""
        from clipviz.training.run_folder import kept_weights

        facts, newest = self._facts, self.folder / _CHECKPOINT
        if facts and self.trace.meta.get("epochs") == 0:  # the method does not change
            return {-1: newest, 0: newest}
        return kept_weights(self.folder) | ({facts.epoch: newest} if facts and facts.is_whole else {})

    @property
    def _file(self) -> Path:
        if self._facts is None and not (self.folder / _CHECKPOINT).is_file():  # it may have come since
            raise ValueError(f"{self.folder} holds no {_CHECKPOINT}, so no learned weights are available")
        return self.folder / _CHECKPOINT if self.epoch is None else self._weights[self.epoch]

    def _load(self, method: Method) -> None:
        """Give a method the weights of `epoch`; buffers that are kept once come from the newest checkpoint."""
        from clipviz.training.checkpoint import check_same_run, facts_of, load_weights

        check_same_run(self._file, facts_of(self._file).identity, self.trace.meta)
        newest = self.folder / _CHECKPOINT
        if self._file != newest and method.kept_once:
            load_weights(newest, method)
        load_weights(self._file, method)


def _arguments(load: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a function from a file, refused if it takes no such."""
    if foreign := sorted(options.keys() - signature(load).parameters.keys()):
        raise ValueError(f"{_CONFIG} has {foreign[0]!r} for {load.__name__}, which does not take it; it was altered")
    return options


def _restored(default: Any, values: Mapping[str, Any]) -> Any:
    """A configuration with the values that JSON kept of another one of its kind."""
    changes = {}
    for name in (field.name for field in fields(default) if field.name in values):
        now, value = getattr(default, name), values[name]
        if is_dataclass(now):
            changes[name] = _restored(now, value)
        elif (name, value) != ("text", "classifier"):  # which stands for texts that came with embeddings
            changes[name] = tuple(value) if isinstance(now, tuple) else value
    return replace(default, **changes)
