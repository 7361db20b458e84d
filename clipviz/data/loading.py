"""From what a user writes after --data to a data set."""

from __future__ import annotations

import os
from collections.abc import Sequence

from clipviz.data.base import ImageDataset
from clipviz.data.feature_files import FEATURE_SUFFIXES, read_features
from clipviz.data.folder import Classes, Descriptions, ImageFolderDataset, Progress
from clipviz.errors import unknown

_BIRDS = "birds"
_DEFAULT_DOMAIN = "source"


def load_dataset(
    spec: str | os.PathLike[str],
    split: str = "train",
    *,
    classes: Classes | None = None,
    descriptions: Descriptions | None = None,
    templates: str | Sequence[str] | None = None,
    seed: int = 0,
    n: int | None = None,
    severity: float = 1.0,
    progress: Progress | None = None,
) -> ImageDataset:
    """Load a data set.

    Args:
        spec: "birds" or "birds/DOMAIN", or a folder of images (one that is called birds is "./birds"), or a .npz or
            .safetensors file of embeddings.
        split: "train", "val" or "test". A folder without splits gives all images, and says so in `split`.
        classes: For folders and embeddings: class names, or a text file with one on each line. Birds bring their own.
        descriptions: A CuPL JSON file, or class name -> sentences.
        templates: One or more patterns with "{}" for the class name.
        seed: Of the images of birds, and of the draw of `n` images.
        n: At most so many images; None for all of a folder, and the default number of birds.
        severity: For birds: strength of the domain's shift; 0 is the source domain.
        progress: For folders: called with (files opened, files to open).

    Raises:
        ValueError: With one line that says what was wanted, what came and what to do.
    """
    text = os.fsdecode(spec)
    if text == _BIRDS or text.startswith(_BIRDS + "/"):
        if classes is not None:
            raise ValueError("birds bring their own class names: leave the class list out")
        # here, so that a folder of images needs nothing of the renderer
        from clipviz.birds.dataset import load_birds

        domain = text.partition("/")[2] or _DEFAULT_DOMAIN
        return load_birds(
            domain, split, seed=seed, n=n, severity=severity, descriptions=descriptions, templates=templates
        )
    folder = os.path.expanduser(text)
    if text.lower().endswith(FEATURE_SUFFIXES) and os.path.isfile(folder):
        return read_features(folder, classes=classes, descriptions=descriptions, templates=templates, n=n, seed=seed)
    if not os.path.isdir(folder):
        raise _no_folder(text, folder)
    return ImageFolderDataset(
        folder,
        split,
        classes=classes,
        descriptions=descriptions,
        templates=templates,
        n=n,
        seed=seed,
        progress=progress,
    )


def _no_folder(text: str, folder: str) -> ValueError:
    if text.lower().endswith(FEATURE_SUFFIXES):
        return ValueError(f"no such file of embeddings: {text!r}; `clipviz embed` writes one from a folder of images")
    if os.path.exists(folder):
        return ValueError(f"{text!r} is a file; give the folder that holds the images")
    if os.path.lexists(folder):
        return ValueError(f"{text!r} is a broken symbolic link; give a folder of images")
    if text.startswith((os.sep, ".", "~")):
        return ValueError(f"no such folder: {text!r}; give an existing folder of images, or {_BIRDS!r}")
    from clipviz.birds.domains import DOMAINS

    builtin = [_BIRDS, *(f"{_BIRDS}/{domain}" for domain in DOMAINS)]
    error = unknown("data set or folder", text, builtin)
    return ValueError(f"{error}, or give the path of an existing folder of images")
