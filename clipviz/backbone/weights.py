"""Where weights come from, and what to say when they do not: names, tags, files, activations, the hub."""

import errno
import logging
import re
import socket
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import huggingface_hub
import open_clip
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from clipviz.backbone.script_archive import Archive, is_script_archive, read_archive
from clipviz.errors import choose, one_line, parse_json

BUNDLED = Path(__file__).parents[1] / "birds" / "model"
"""The embedded default: an ordinary open_clip model folder (config and safetensors)."""

_CONFIG_FILE = "open_clip_config.json"
_KEYS = ("Missing key(s)", "Unexpected key(s)")
_ASKS_FOR_CODE = {"trust_remote_code", "auto_map", "custom_code", "custom_pipelines", "custom_generate"}
_TOKEN_TABLES = {"tokenizer.json", "vocab.json", "added_tokens.json"}  # whose keys are tokens, whatever they say
_TOKENIZER_OPTIONS = {
    "clean", "strip_sep_token", "language", "reduction_mask", "additional_special_tokens", "use_fast", "padding_side",
    "truncation_side", "model_max_length", "add_prefix_space", "do_lower_case", "legacy",
}  # fmt: skip
"""Of open_clip and transformers, those that are about texts; others name files, places, or code."""


class Plan(NamedTuple):
    """What open_clip is to build for a model and its weights."""

    source: str  # what open_clip calls the model
    quick_gelu: bool | None = None  # set in its configuration; None leaves that as it is
    archive: Archive | None = None  # the weights, where the file is a TorchScript archive, which open_clip would run
    notice: str | None = None  # a line on an activation that is not that of the architecture that was named


class Unfilled(TorchFunctionMode):
    """Inside the `with` statement modules are made without random weights, for a file to fill whole or be refused."""

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, home = kwargs or {}, getattr(function, "__module__", None)
        return kwargs["tensor"] if home == "torch.nn.init" else function(*args, **kwargs)


@contextmanager
def loading(what: str, source: str, pretrained: str | None = None) -> Iterator[None]:
    """Load with open_clip, quietly and without waiting for a network that is not there; errors become one line."""
    try:
        with _quietly(), _at_once(source, pretrained):
            yield
    except Exception as error:  # a damaged file raises whatever the parser that meets it raises
        raise ValueError(f"could not load {what}: {_missing(source, pretrained, error) or _reason(error)}") from error


def source_of(name: str) -> str:
    """What open_clip calls a model, after refusing what it would stumble over."""
    if name == "birds":
        return f"local-dir:{BUNDLED}"
    if (Path(name) / _CONFIG_FILE).is_file():
        return f"local-dir:{name}"
    if name.startswith(("hf-hub:", "local-dir:")):
        return name
    if Path(name).is_dir():
        raise ValueError(
            f"the folder {name!r} is not a model: it holds no {_CONFIG_FILE} (and open_clip_model.safetensors); give a "
            "folder with both, or the name of an architecture"
        )
    if Path(name).is_file():
        raise ValueError(
            f"{name!r} is a file; the model is an architecture such as ViT-B-32, and the file its pretrained weights "
            "(pretrained=FILE, --pretrained FILE)"
        )
    return choose("model", name, ("birds", *open_clip.list_models()))


def planned(name: str, pretrained: str | None) -> Plan:
    """What to build: the architecture, with the activation that its weights were trained with, as far as that is known.

    A tag of open_clip says it, a TorchScript archive has it in it, and of other files the name may tell.
    """
    source = source_of(name)
    if pretrained is None:
        return Plan(source)
    if source != name or ":" in source:
        raise ValueError(f"the model {name!r} has its own weights, got pretrained={pretrained!r}; leave it out")
    base = name.removesuffix("-quickgelu")
    tags = list(dict.fromkeys(tag for n in (name, base) for tag in open_clip.list_pretrained_tags_by_model(n)))
    archive = quick = None
    if not Path(pretrained).is_file():
        _check_tag(name, pretrained, tags)
        quick = _activation_of_tag(base, pretrained)
    elif is_script_archive(pretrained):
        archive = read_archive(pretrained)
        quick = archive.quick_gelu
    if quick is None:
        quick = _activation_by_name(pretrained, base, tags)
    if quick is None or quick == _has_quick_gelu(name):
        return Plan(name, archive=archive)
    kind, other = ("QuickGELU", f"{base}-quickgelu") if quick else ("GELU", base)
    notice = f"the weights {pretrained!r} were trained with {kind}, so {name!r} is built with it"
    if other in open_clip.list_models() and _has_quick_gelu(other) == quick:
        return Plan(other, None, archive, f"{notice}, as {other!r}")
    return Plan(name, quick, archive, notice)


def _has_quick_gelu(source: str) -> bool:
    return bool((open_clip.get_model_config(source) or {}).get("quick_gelu"))


def _activation_of_tag(base: str, tag: str) -> bool:
    """Whether the weights of a tag want QuickGELU; where open_clip does not say, what the architecture has."""
    said = open_clip.get_pretrained_cfg(base, tag).get("quick_gelu")
    return _has_quick_gelu(base) if said is None else bool(said)


def _check_tag(name: str, pretrained: str, tags: list[str]) -> None:
    if Path(pretrained).is_dir():
        raise ValueError(f"the weights {pretrained!r} are a folder; give the file in it (.safetensors or .pt)")
    if not tags or Path(pretrained).suffix in {".safetensors", ".pt", ".pth", ".bin"}:
        more = f" and {len(tags) - 3} more" if len(tags) > 3 else ""
        known = f"a tag ({', '.join(tags[:3])}{more})" if tags else f"leave it out: {name} has no pretrained tags"
        raise ValueError(f"no such weights file: {pretrained!r}; give an existing file or {known}")
    choose(f"pretrained tag for {name}", pretrained, tags)


def _activation_by_name(path: str, base: str, tags: list[str]) -> bool | None:
    """Whether a file of weights wants QuickGELU, if its name says so, or says which tag of open_clip it is."""
    name = Path(path).name.lower().replace("-", "_")
    if any(sign in name for sign in ("openai", "quickgelu", "quick_gelu")):
        return True
    said = {_activation_of_tag(base, tag) for tag in tags if tag in name}
    return said.pop() if len(said) == 1 else None


def fitting(tensors: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """The tensors of an archive without those that are no weights: sizes (`input_resolution`), masks (`attn_mask`).

    They are told by the last part of their name, which no weight of the model has; of the others none may be too many.
    """
    leaves = {name.rpartition(".")[2] for name in model.state_dict()}
    return {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] in leaves}


def rounding_notice(plan: Plan, path: str, visual: Any) -> str | None:
    """What to say of a file whose weights are rounded to half precision, as OpenAI's are, with GELU; else None.

    A file of weights does not hold the activation, and others round theirs, too, so it is no more than a notice.
    """
    quick = f"{plan.source}-quickgelu"
    if not Path(path).is_file() or plan.notice is not None or quick not in open_clip.list_models():
        return None
    if not all(torch.equal(w, w.half().to(w.dtype)) for w in visual.parameters() if w.ndim > 1):
        return None
    return (
        f"the weights {path!r} are rounded to half precision, as OpenAI's are; if they are OpenAI's, or were trained "
        f"from those, they need QuickGELU: use the architecture {quick!r}"
    )


def _missing(name: str, pretrained: str | None, error: Exception) -> str | None:
    """What to do about a file or package that is not on this machine; None if that is not the trouble."""
    text = str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"its tokenizer needs the package {error.name}: pip install {error.name}"
    if "Couldn't instantiate the backend tokenizer" in text:
        return "the files of its tokenizer are not in the folder; put tokenizer.json and tokenizer_config.json there"
    if not any(sign in text for sign in ("Failed to download", "offline mode", "couldn't connect", "Hub")):
        return None
    absent = "not on this machine and could not be downloaded"
    folder = f"{_CONFIG_FILE} and open_clip_model.safetensors into a folder and give that folder as the model"
    if name.startswith("hf-hub:"):
        return f"it is {absent}; put its {folder}"
    if pretrained is None or Path(pretrained).is_file():
        texts = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
        repository = texts.get("hf_tokenizer_name") or texts.get("hf_model_name")
        files = f"the files of the hub's {repository}" if repository else "its files"
        return f"its tokenizer is {absent}; put {files} (tokenizer.json, tokenizer_config.json) with {folder}"
    repository = (open_clip.get_pretrained_cfg(name, pretrained) or {}).get("hf_hub", "").strip("/")
    where = f" (open_clip_model.safetensors of the hub's {repository})" if repository else ""
    return f"the weights are {absent}; get their file{where} and give its path instead of the tag"


def _reason(error: Exception) -> str:
    if isinstance(error, UnpicklingError) and not re.search(r"operand (?!149\b)", str(error)):  # 149 begins a pickle
        return "the file is pickled and holds more than tensors, and is not opened; save its state_dict as .safetensors"
    text = "no pickle; safetensors need the ending .safetensors" if isinstance(error, UnpicklingError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no reason given"]
    if "input_resolution" in str(error):
        return "this is the state_dict of OpenAI's archive, with sizes among the weights; give the archive itself (.pt)"
    if "pos_embed" in lines[0] or "no attribute 'ndim'" in lines[0]:  # open_clip looks at some weights first
        return _unfit(lines)
    if isinstance(error, RuntimeError) and len(lines) > 1 and "state_dict" in lines[0]:
        return _unfit(lines[1:])
    # what torch says of a file that is cut off
    is_cut = "zip archive" in lines[0] or (isinstance(error, OSError) and error.errno == errno.EINVAL)
    if isinstance(error, RuntimeError | OSError | ValueError) and not is_cut:
        return lines[0]
    reason = f"{type(error).__name__}: {one_line(lines[0], 80)}"
    return f"damaged, or not a file of weights ({reason}); copy or download it again"


def _unfit(lines: list[str]) -> str:
    """That weights are another architecture's, or have other names: the first of the lines that say so."""
    more = f"; {len(lines) - 1} more such lines" if len(lines) > 1 else ""
    said, remedy = lines[0], "name the architecture that they belong to"
    if shapes := re.match(r"(size mismatch for \S+): .*Size\(\[(.*?)\]\) from .*Size\(\[(.*?)\]\)", said):
        name, found, wanted = (text.replace(", ", " x ") for text in shapes.groups())
        said = f"{name}: {found} in the file, {wanted} in the architecture"
    absent, others = ([key for line in lines if kind in line for key in line.split('"')[1::2]] for kind in _KEYS)
    if absent and others:
        said, more = f"the file has {others[0]!r} in the place of {absent[0]!r}", ""
        if whole := min((key for key in others if key.endswith(absent[0])), key=len, default=""):
            remedy = f"save them without {whole.removesuffix(absent[0])!r} before their names"
    return f"the weights do not fit this architecture ({one_line(said, 150)}{more}); {remedy}"


def refuse_code(source: str) -> dict[str, bool]:
    """Refuse a model whose files ask for code, which transformers would run for them, naming the file and the key.

    Returns options for its tokenizer, so that transformers neither runs code nor asks whether it may.
    """
    kind, _, place = source.partition(":")  # an architecture of open_clip's own has no place
    path = _file_of(place, _CONFIG_FILE) if place else None
    config = (_json_in(path) if path else None) or open_clip.get_model_config(source)
    model = config.get("model_cfg", config) if isinstance(config, dict) else {}
    text, vision = (model.get(part) if isinstance(model, dict) else None for part in ("text_cfg", "vision_cfg"))
    if not isinstance(text, dict) or not isinstance(vision, dict):
        raise ValueError(f"its {_CONFIG_FILE} has no text_cfg and vision_cfg")
    _refuse_keys(_CONFIG_FILE, config)
    if ":" in str(vision.get("timm_model_name", "")):
        raise ValueError(f"its {_CONFIG_FILE} names an image tower elsewhere: {vision['timm_model_name']!r}")
    if other := set(text.get("tokenizer_kwargs") or {}) - _TOKENIZER_OPTIONS:
        raise ValueError(f"its {_CONFIG_FILE} has tokenizer_kwargs that are not known: {', '.join(sorted(other))}")
    tokenizer, tower = text.get("hf_tokenizer_name"), text.get("hf_model_name")
    for where in filter(None, (place if tokenizer and kind == "local-dir" else tokenizer, tower)):
        _refuse_folder(where)
    return {"trust_remote_code": False} if tokenizer else {}


def _refuse_folder(where: str) -> None:
    """Refuse a folder, or a repository of the hub, if any file asks for code that transformers could meet in it.

    All are looked at: one configuration names others, for other versions of transformers, also in folders below.
    """
    folder = Path(where)
    if folder.is_file():
        raise ValueError(f"its {_CONFIG_FILE} names a file where a folder or a name of the hub belongs: {where!r}")
    if not folder.is_dir():
        found = next(filter(None, (_file_of(where, name) for name in ("tokenizer_config.json", "config.json"))), None)
        if found is None:
            return
        folder = found.parent  # what the cache of the hub holds of it
    for path in sorted(folder.rglob("*")):
        name = f"{path.relative_to(folder)} of {where}"
        if path.suffix.lower() in (".pkl", ".pickle") or (path.is_dir() and path.is_symlink()):
            raise ValueError(f"its {name} is a pickle or a link to a folder, which could contain code; remove it")
        if path.suffix == ".json" and path.name not in _TOKEN_TABLES and path.is_file():
            _refuse_keys(name, _json_in(path))


def _refuse_keys(file: str, content: Any) -> None:
    """Refuse JSON that has a key, at any depth, by which transformers is told to run code."""
    todo = [content]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if asks := [key for key in value if key in _ASKS_FOR_CODE and value[key]]:
                raise ValueError(
                    f"its {file} asks for code to be run ({asks[0]}), which clipviz never does; remove that if the "
                    "model works without it"
                )
            todo += value.values()
        elif isinstance(value, list):
            todo += value


def _file_of(place: str, file: str) -> Path | None:
    """A file of a folder, or of a repository of the hub; None where there is none."""
    if Path(place).is_dir():
        path = Path(place) / file
        return path if path.is_file() else None
    try:
        return Path(huggingface_hub.hf_hub_download(place, file))
    except Exception:  # not there, no network, no such name: whoever needs it will say so
        return None


def _json_in(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"its {path.name} is not JSON ({one_line(error)})") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep open_clip's and the hub's notes away: `load_backbone` says the same in a warning or an error."""
    root, hub = logging.getLogger(), logging.getLogger("huggingface_hub")
    handlers, level = list(root.handlers), hub.level

    def is_other(record: logging.LogRecord) -> bool:
        return not any(note in record.getMessage() for note in ("initialized randomly", "Failed to download"))

    root.addFilter(is_other)
    hub.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "QuickGELU mismatch")
            yield
    finally:
        root.removeFilter(is_other)
        hub.setLevel(level)
        for handler in set(root.handlers) - set(handlers):  # logging.warning() installs one
            root.removeHandler(handler)


def _asks_hub(source: str, pretrained: str | None) -> bool:
    """Whether a model takes something from the hub, or from its cache: weights by tag, a tokenizer, a text tower."""
    is_tag = ":" not in source and pretrained is not None and not Path(pretrained).is_file()
    if source.startswith("hf-hub:") or is_tag:
        return True
    config = open_clip.get_model_config(source)
    text = config.get("text_cfg") if isinstance(config, dict) else None
    elsewhere = {"hf_model_name"} if ":" in source else {"hf_model_name", "hf_tokenizer_name"}
    return isinstance(text, dict) and bool(text.keys() & elsewhere)


@contextmanager
def _at_once(source: str, pretrained: str | None = None) -> Iterator[None]:
    """Without a network, take what is in the cache: the hub would try each file for half a minute first."""
    constants = huggingface_hub.constants
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or (_asks_hub(source, pretrained) and not _is_reachable(constants.ENDPOINT))
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _is_reachable(address: str) -> bool:
    """Whether a server's name can be looked up; through a proxy only the proxy knows."""
    with suppress(OSError):
        return bool(urllib.request.getproxies() or socket.getaddrinfo(urllib.parse.urlsplit(address).hostname, None))
    return False
