"""Where weights come from, and what to say when they do not: names, tags, files, activations, the hub.

Nothing here knows what a backbone is; `clipviz.backbone.load_backbone` puts it together.
"""

from __future__ import annotations

import errno
import logging
import re
import socket
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from clipviz.errors import choose, one_line

BUNDLED = Path(__file__).parents[1] / "birds" / "model"
"""The embedded default: an ordinary open_clip model folder (config and safetensors)."""

_CONFIG_FILE = "open_clip_config.json"


def source_of(name: str, pretrained: str | None) -> str:
    """What open_clip calls a model, after refusing what it would stumble over."""
    import open_clip

    is_folder = (Path(name) / _CONFIG_FILE).is_file()
    if pretrained is not None and (name == "birds" or is_folder):
        raise ValueError(f"the model {name!r} brings its own weights, got pretrained={pretrained!r}; leave it out")
    if name == "birds":
        return f"local-dir:{BUNDLED}"
    if is_folder:
        return f"local-dir:{name}"
    if name.startswith(("hf-hub:", "local-dir:")):
        return name
    if Path(name).is_dir():
        raise ValueError(
            f"the folder {name!r} is no model: it holds no {_CONFIG_FILE} (and open_clip_model.safetensors); give a "
            "folder with both, or the name of an architecture"
        )
    if Path(name).is_file():
        raise ValueError(
            f"{name!r} is a file; the model is an architecture such as ViT-B-32, and the file its pretrained weights "
            "(pretrained=FILE, --pretrained FILE)"
        )
    choose("model", name, ("birds", *open_clip.list_models()))
    _check_pretrained(name, pretrained)
    return name


def _check_pretrained(name: str, pretrained: str | None) -> None:
    """Refuse a tag or file that does not exist, or would be loaded with the wrong activation."""
    import open_clip

    if pretrained is None:
        return
    if Path(pretrained).is_file():
        if _is_for_quickgelu(pretrained):
            check_activation(name, pretrained, wants_quick=True)
        return
    if Path(pretrained).is_dir():
        raise ValueError(f"the weights {pretrained!r} are a folder; give the file in it (.safetensors or .pt)")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tags or Path(pretrained).suffix in {".safetensors", ".pt", ".pth", ".bin"}:
        more = f" and {len(tags) - 3} more" if len(tags) > 3 else ""
        known = f"a tag ({', '.join(tags[:3])}{more})" if tags else f"leave it out: {name} has no pretrained tags"
        raise ValueError(f"no such weights file: {pretrained!r}; give an existing file or {known}")
    choose(f"pretrained tag for {name}", pretrained, tags)
    wants_quick = bool((open_clip.get_pretrained_cfg(name, pretrained) or {}).get("quick_gelu", False))
    check_activation(name, pretrained, wants_quick)


def check_activation(name: str, pretrained: str, wants_quick: bool) -> None:
    """Refuse weights that were trained with another activation: the model would run, and be worse."""
    import open_clip

    has_quick = bool((open_clip.get_model_config(name) or {}).get("quick_gelu", False))
    if wants_quick != has_quick:
        other = f"{name}-quickgelu" if wants_quick else name.removesuffix("-quickgelu")
        raise ValueError(
            f"the weights {pretrained!r} were trained with {'QuickGELU' if wants_quick else 'GELU'} but {name!r} uses "
            f"{'QuickGELU' if has_quick else 'GELU'}; use the architecture {other!r}"
        )


def _is_for_quickgelu(path: str) -> bool:
    """Whether a file of weights says that it wants QuickGELU: as OpenAI's archive, or by its name."""
    return is_script_archive(path) or any(sign in Path(path).name.lower() for sign in ("openai", "quickgelu"))


def rounding_notice(name: str, path: str, visual: Any) -> str | None:
    """What to say of a file whose weights are rounded to half precision, as OpenAI's are, with GELU; else None.

    A file of weights does not hold the activation, and others round theirs, too, so it is no more than a notice.
    """
    import open_clip

    quick = f"{name}-quickgelu"
    weights = [parameter for parameter in visual.parameters() if parameter.ndim > 1]
    if (
        not Path(path).is_file()
        or quick not in open_clip.list_models()
        or not all(torch.equal(w, w.half().to(w.dtype)) for w in weights)
    ):
        return None
    return (
        f"the weights {path!r} are rounded to half precision, as OpenAI's are; if they are OpenAI's, or were trained "
        f"from those, they want QuickGELU: use the architecture {quick!r}"
    )


def missing(name: str, pretrained: str | None, error: Exception) -> str | None:
    """What to do about a file or package that is not on this machine; None if that is not the trouble."""
    import open_clip

    text = str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"its tokenizer needs the package {error.name}: pip install {error.name}"
    if "Couldn't instantiate the backend tokenizer" in text:
        return (
            "the files of its tokenizer are not in the folder; put tokenizer.json and tokenizer_config.json there, too"
        )
    if not any(sign in text for sign in ("Failed to download", "offline mode", "couldn't connect", "Hub")):
        return None
    if name.startswith("hf-hub:"):
        return (
            "it is not on this machine and could not be downloaded; put its open_clip_config.json and "
            "open_clip_model.safetensors into a folder and give that folder as the model"
        )
    if pretrained is None or Path(pretrained).is_file():
        texts = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
        repository = texts.get("hf_tokenizer_name") or texts.get("hf_model_name")
        files = f"the files of the hub's {repository}" if repository else "its files"
        return (
            f"its tokenizer is not on this machine and could not be downloaded; put {files} (tokenizer.json, "
            "tokenizer_config.json) with open_clip_config.json and open_clip_model.safetensors into a folder and give "
            "that folder as the model"
        )
    repository = (open_clip.get_pretrained_cfg(name, pretrained) or {}).get("hf_hub", "").strip("/")
    where = f" (open_clip_model.safetensors of the hub's {repository})" if repository else ""
    return (
        f"the weights are not on this machine and could not be downloaded; get their file{where} and give its path "
        "instead of the tag"
    )


def explained(error: Exception) -> str:
    """One line of an error from the depths of a loader."""
    if isinstance(error, UnpicklingError):
        return (
            "the file is pickled and holds more than tensors, so it is not opened; save its state_dict as .safetensors"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "input_resolution" in str(error):
        return (
            "this is the state_dict of OpenAI's archive, with sizes among the weights; give the archive itself (.pt), "
            "and an architecture with QuickGELU, such as ViT-B-32-quickgelu"
        )
    if isinstance(error, RuntimeError) and len(lines) > 1 and "state_dict" in lines[0]:
        more = f"; {len(lines) - 2} more such lines" if len(lines) > 2 else ""
        return (
            f"the weights do not fit this architecture ({one_line(_in_words(lines[1]), 150)}{more}); name the "
            "architecture that they belong to"
        )
    first = lines[0] if lines else "no reason given"
    # what torch says of a file that is cut off
    is_cut = "zip archive" in first or (isinstance(error, OSError) and error.errno == errno.EINVAL)
    if isinstance(error, RuntimeError | OSError | ValueError) and not is_cut:
        return first
    return (
        f"damaged, or not a file of weights ({type(error).__name__}: {one_line(first, 80)}); copy or download it again"
    )


def _in_words(mismatch: str) -> str:
    """Torch's line on a tensor of another shape, shorter."""
    found = re.match(r"(size mismatch for \S+): .*Size\(\[(.*?)\]\) from .*Size\(\[(.*?)\]\)", mismatch)
    if found is None:
        return mismatch
    name, in_file, wanted = found.groups()
    return f"{name}: {in_file.replace(', ', ' x ')} in the file, {wanted.replace(', ', ' x ')} in the architecture"


def is_script_archive(path: str) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI published its models: a zip file with code in it."""
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.endswith("constants.pkl") for name in file.namelist())
    except (OSError, zipfile.BadZipFile, ValueError):
        return False


@contextmanager
def quietly() -> Iterator[None]:
    """Keep open_clip's and the hub's notes from the log: `load_backbone` says the same in a warning or an error."""
    root, hub = logging.getLogger(), logging.getLogger("huggingface_hub")
    handlers, level = list(root.handlers), hub.level

    def is_other(record: logging.LogRecord) -> bool:
        return not any(note in record.getMessage() for note in ("initialized randomly", "Failed to download"))

    root.addFilter(is_other)
    hub.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.removeFilter(is_other)
        hub.setLevel(level)
        for handler in set(root.handlers) - set(handlers):  # logging.warning() installs one
            root.removeHandler(handler)


def asks_hub(source: str, pretrained: str | None) -> bool:
    """Whether a model takes something from the hub, or from its cache: weights by tag, or a tokenizer."""
    import open_clip

    if ":" in source:
        return source.startswith("hf-hub:")
    if pretrained is not None and not Path(pretrained).is_file():
        return True
    text = (open_clip.get_model_config(source) or {}).get("text_cfg", {})
    return bool(text.keys() & {"hf_tokenizer_name", "hf_model_name"})


@contextmanager
def at_once(source: str, pretrained: str | None = None) -> Iterator[None]:
    """Without a network, take what is in the cache: the hub would try each file for half a minute first."""
    if not asks_hub(source, pretrained):
        yield
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _is_reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _is_reachable(address: str) -> bool:
    """Whether a server's name can be looked up; through a proxy only the proxy knows."""
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(address).hostname, None)
    except OSError:
        return False
    return True
