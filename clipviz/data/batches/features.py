"""Embeddings as data: rows stand in for images, and a classifier or a model's text tower makes the classes.

`embed_dataset` makes them, `clipviz.data.sources.feature_files` reads and writes them. Rows keep their precision in
memory; a batch is float32 of unit norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from clipviz.backbone import Backbone
from clipviz.backbone.ownership import preserved_state
from clipviz.data.base import ImageDataset, ViewConfig, Views
from clipviz.data.batches.loader import ViewLoader, eval_views
from clipviz.errors import finite_number, one_line, several_texts
from clipviz.events import UNLABELLED
from clipviz.ops import normalize
from clipviz.parallel import ONE, Ranks
from clipviz.prompts import ClassPrompts, Descriptions, make_prompts, short_hash, spoken_name

DEFAULT_LOGIT_SCALE = 100.0
"""What CLIP's learned scale is clipped to, and where OpenAI's models ended."""

Table = Mapping[str, Tensor]
_CHECKED_ROWS = 65_536
_MOST_CLASSES = 1_000_000


class FeatureDataset(ImageDataset):
    """Embeddings of n images, with everything a data set of images has but the images.

    Args:
        embeddings: (n, E) floating point, finite, no zero rows; like all numbers here of torch or numpy, or in lists.
        targets: (n,) integers in [-1, C); None: all unlabeled.
        class_names: C names; None: "class 0", "class 1", ... as many as `classifier` has rows, or as targets tell.
        classifier: (C, E) float, finite; None if a text tower will make one (`backbone(text)`).
        model: name of the model that made the embeddings; `logit_scale` multiplies its cosines.
        descriptions: class name -> sentences, or a CuPL JSON file, for a text tower in place of the classifier.
        templates: patterns for a text tower, where there is no classifier.
    """

    has_pixels = False

    def __init__(
        self, embeddings: Tensor, *, name: str, split: str = "all", targets: Tensor | None = None,
        class_names: Sequence[str] | None = None, classifier: Tensor | None = None,
        logit_scale: float = DEFAULT_LOGIT_SCALE, model: str = "features", descriptions: Descriptions | None = None,
        templates: str | Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        embeddings = _tensor("embeddings", embeddings, name)
        targets = None if targets is None else _tensor("labels", targets, name)
        _check_matrix("embeddings", embeddings, name)
        if classifier is not None:
            classifier = _tensor("classifier", classifier, name)
            _check_matrix("classifier", classifier, name)
            if classifier.shape[1] != (width := embeddings.shape[1]):
                turned = classifier.shape[0] == width
                remedy = "it is (E, C): store classifier.T" if turned else "both must come from one joint space"
                raise ValueError(f"{name}: the classifier is {classifier.shape[1]} wide, embeddings {width}; {remedy}")
        if finite_number(f"{name}: logit_scale", logit_scale) <= 0:
            raise ValueError(f"{name}: logit_scale must be positive, got {logit_scale}")
        self.name, self.split, self.model, self.logit_scale = name, split, model, logit_scale
        self.embeddings, self.classifier = embeddings, classifier
        names = _class_names(class_names, classifier, targets, name)
        reads_text = classifier is None or descriptions is not None
        self.prompts = make_prompts(names, templates, descriptions) if reads_text else ClassPrompts(names, ("{}",))
        self.class_names = self.prompts.names
        self.is_numbered = class_names is None  # nobody gave them names
        self.targets = _targets(targets, len(embeddings), len(self.class_names), name)
        self.names, self.skipped = _RowNames(len(embeddings)), []

    @cached_property
    def digest(self) -> str:
        """A short hash of embeddings and labels, whatever the file and its classifier."""
        kind = f"{self.embeddings.shape} {self.embeddings.dtype}"
        return short_hash([kind, tensor_bytes(self.embeddings), self.targets.tobytes()])

    def _contents_hash(self) -> str:
        tensors = [self.embeddings] if self.classifier is None else [self.embeddings, self.classifier]
        return short_hash([f"{self.logit_scale} {self.model}", *map(tensor_bytes, tensors)])

    def image(self, index: int) -> Image.Image:
        """Refused: there are no pixels."""
        raise ValueError(f"{self.name} holds embeddings, not images; give the folder of images to see them")

    def rows(self, index: Tensor | slice) -> Tensor:
        """Embeddings of some positions: (B, E) float32, unit norm."""
        return normalize(self.embeddings[index].float())

    def backbone(self, text: Backbone | None = None) -> FeatureBackbone:
        """What methods take for a CLIP model on this data; `text` gives a text tower where there is no classifier."""
        width = self.embeddings.shape[1]
        if text is not None and text.embed_dim != width:
            raise ValueError(
                f"{self.name} has embeddings of width {width}, but the text tower of {text.name!r} gives "
                f"{text.embed_dim}; use the model that made the file"
            )
        if self.classifier is not None and not self.prompts.descriptions_given:
            table = dict(zip(self.class_names, self.classifier, strict=True))
            return FeatureBackbone(width, self.logit_scale, self.model, table)
        if text is None:
            raise ValueError(
                f"{self.name} has no classifier to go with its embeddings; give the model whose text tower makes one, "
                "or write the file with a classifier (C, E)"
            )
        return FeatureBackbone(width, text.logit_scale, text.name, text=text)


class _RowNames(Sequence[str]):
    """Names of the rows, made when asked for: a million strings would be larger than some files."""

    def __init__(self, n: int) -> None:
        self._rows = range(n)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        chosen = self._rows[index]
        return [f"row {i}" for i in chosen] if isinstance(chosen, range) else f"row {chosen}"


class FeatureBackbone(Backbone):
    """A backbone for methods that work on embeddings of the model `name`: the image tower is the identity.

    The text tower is a table, class name -> (E,) embedding, or that of the model `text`.
    """

    def __init__(
        self, width: int, logit_scale: float, name: str, classifier: Table | None = None, text: Backbone | None = None
    ) -> None:
        model = nn.Module()
        visual: Any = nn.Module()  # nothing to train, no patches, and nothing is ever drawn
        visual.image_size, visual.output_dim = 0, width
        model.visual = visual
        model.logit_scale = nn.Parameter(torch.tensor(logit_scale).log(), requires_grad=False)
        super().__init__(model, None, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), name)
        self.origin, self.built = (None, None) if text is None else (text.origin, text.built)
        self._table = {spoken_name(key): row for key, row in (classifier or {}).items()}
        if len(self._table) < len(classifier or {}):
            raise ValueError(f"{name}: class names differ only in underscores and spaces; make the words differ")
        self._text = [text] if text is not None else []  # a list: not a part of this model
        self.reads_text = text is not None

    def require_patches(self, purpose: str) -> None:
        """Refuse, with the reason."""
        raise ValueError(
            f"{purpose} needs images, but the data are embeddings only; give the folder of images, or use "
            "zero_shot, tip_adapter, transclip, tda, ntua or dpa"
        )

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings are what comes in; images are refused."""
        if images.ndim != 2 or images.shape[1] != self.embed_dim:
            raise ValueError(f"wanted embeddings (B, {self.embed_dim}), got {tuple(images.shape)}")
        return normalize(images)

    def embed_text(self, texts: Sequence[str], batch_size: int = 256, *, unit: bool = True) -> Tensor:
        """Embeddings of sentences by the text tower, or of class names by the table."""
        if self._text:
            return self._text[0].embed_text(texts, batch_size, unit=unit)
        if unknown := [text for text in texts if text not in self._table]:
            raise ValueError(f"a file of embeddings has no text tower: it knows its classes, but not {unknown[0]!r}")
        rows = torch.stack([self._table[text] for text in texts]).float().to(self.device)
        return normalize(rows) if unit else rows

    def trainable_copy(self) -> Backbone:
        """Itself: nothing in it can be trained."""
        return self


class FeatureLoader(ViewLoader):
    """Batches of embeddings, in the order in which `ViewLoader` gives images; the only view is the embedding itself."""

    dataset: FeatureDataset

    def __init__(self, dataset: FeatureDataset, batch_size: int, seed: int, device: torch.device | str = "cpu") -> None:
        super().__init__(dataset, ViewConfig(1), batch_size, seed, device=device)

    def _views(self, epoch: int, steps: Sequence[NDArray[np.int64]]) -> Iterator[Views]:
        for indices in steps:
            yield Views(self.dataset.rows(torch.from_numpy(indices)).to(self.device))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The numbers of a tensor as they lie in memory, bfloat16 too."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _tensor(what: str, numbers: Any, source: str) -> Tensor:
    try:
        return numbers.detach() if isinstance(numbers, Tensor) else torch.tensor(np.asarray(numbers))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {what} must be an array of numbers ({one_line(error)})") from error


def _check_matrix(what: str, matrix: Tensor, source: str) -> None:
    """Refuse what is no (n, E) matrix of usable rows; a million rows are looked at in slices."""
    if matrix.ndim != 2 or not matrix.is_floating_point() or 0 in matrix.shape:
        raise ValueError(
            f"{source}: {what} must be a floating-point matrix (n, E) with at least one row, "
            f"got {str(matrix.dtype).removeprefix('torch.')} {tuple(matrix.shape)}"
        )
    for start in range(0, len(matrix), _CHECKED_ROWS):
        norms = matrix[start : start + _CHECKED_ROWS].float().norm(dim=1)
        bad = ~torch.isfinite(norms) | (norms == 0)
        if bad.any():
            row = start + int(bad.nonzero()[0])
            reason = "is all zero" if norms[row - start] == 0 else "holds NaN or infinite numbers"
            raise ValueError(f"{source}: row {row} of {what} {reason} in float32; leave such rows out of the file")


def _class_names(
    names: Sequence[str] | None, classifier: Tensor | None, targets: Tensor | None, source: str
) -> tuple[str, ...]:
    """The names, else numbers for as many as the classifier has rows, or as the targets tell."""
    if names is not None:
        if classifier is not None and len(names) != len(classifier):
            raise ValueError(f"{source}: {len(names)} class names for a classifier with {len(classifier)} rows")
        return several_texts(f"{source}: class names", names)
    n = 0 if classifier is None else len(classifier)
    if classifier is None and targets is not None and targets.numel() and not targets.is_floating_point():
        n = min(int(targets.to(torch.int64).max()) + 1, _MOST_CLASSES)  # more are refused as targets
    return tuple(f"class {i}" for i in range(n))


def _targets(targets: Tensor | None, n: int, n_classes: int, source: str) -> np.ndarray:
    if targets is None:
        return np.full(n, UNLABELLED, np.int64)
    if targets.ndim != 1 or len(targets) != n or targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(
            f"{source}: labels must be {n} integers, one per embedding, "
            f"got {str(targets.dtype).removeprefix('torch.')} {tuple(targets.shape)}"
        )
    targets = targets.to(torch.int64)  # of wide unsigned numbers torch knows no smallest
    low, high = int(targets.min()), int(targets.max())
    if low < UNLABELLED or (n_classes and high >= n_classes):
        raise ValueError(f"{source}: labels must be 0..{n_classes - 1}, or {UNLABELLED} for none, got {low}..{high}")
    return targets.numpy()


def embed_dataset(
    backbone: Backbone, dataset: ImageDataset, classifier: Tensor | None = None, ranks: Ranks = ONE
) -> FeatureDataset:
    """Embeddings (n, E) float32, on the CPU, of the whole (center-cropped) views, with all that `dataset` says of them.

    A classifier (C, E) is kept beside them. All processes of `ranks` share the work and get all embeddings.
    """
    rows = []
    for views in eval_views(dataset, ViewConfig(backbone.image_size), 256, backbone.device, ranks):
        with preserved_state(backbone):
            rows.append(views.gather(backbone.embed(views.weak)).cpu())
        if not torch.isfinite(rows[-1]).all():
            raise ValueError(f"{backbone.name!r} gives embeddings that are not finite; its weights hold NaN or inf")
    return FeatureDataset(
        torch.cat(rows), name=dataset.name, split=dataset.split, targets=torch.from_numpy(dataset.targets.copy()),
        class_names=dataset.class_names, classifier=None if classifier is None else classifier.cpu(),
        logit_scale=backbone.logit_scale, model=backbone.name,
    )  # fmt: skip
