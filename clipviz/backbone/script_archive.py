"""The tensors of a TorchScript archive, read as data: `torch.jit.load` would run the code that it holds.

An archive is a zip file. Its data.pkl describes the tree of modules, its data/ holds the bytes of the tensors, and its
code/ is never opened. The description is followed opcode by opcode, and only those opcodes are known that make numbers,
texts, containers, tensors and modules; nothing is imported or called because a file names it. Layout: torch's
`torch/csrc/jit/serialization` (pickler.cpp, export_module.cpp).
"""

from __future__ import annotations

import os
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

_MOST_BYTES = 16 << 20
"""Of data.pkl: it has some kB for each layer."""

_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip


class Archive(NamedTuple):
    """What a TorchScript archive says of a model.

    Attributes:
        tensors: by the names that they have in a state_dict; attributes that are tensors are among them.
        quick_gelu: whether its activation is QuickGELU; None if its modules do not say.
    """

    tensors: dict[str, Tensor]
    quick_gelu: bool | None


class _Named(str):
    """A class or function that the file names: inert."""


class _Module:
    """In the place of any `__torch__` class: its attributes, if it has any."""

    def __init__(self) -> None:
        self.state: Any = {}


def is_script_archive(path: str) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI published its models: a zip file with code in it."""
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.endswith("constants.pkl") for name in file.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def read_archive(path: str) -> Archive:
    """Read the tensors of a TorchScript archive, and run nothing.

    Raises:
        ValueError: if it is damaged, or holds anything but modules with tensors and plain values.
    """
    named: set[str] = set()
    try:
        with zipfile.ZipFile(path) as file:
            root = next(n.removesuffix("constants.pkl") for n in file.namelist() if n.endswith("constants.pkl"))
            records = _Records(file, root, os.path.getsize(path))
            tensors = dict(_named_tensors(_described(records.read("data.pkl", _MOST_BYTES), records.storage, named)))
            if not tensors:
                raise ValueError("it holds no weights")
    except ValueError as error:
        raise ValueError(f"the weights {path!r} are a TorchScript archive, which is never run, and {error}") from None
    except Exception as error:  # a damaged file raises whatever reading it raises
        raise ValueError(
            f"the weights {path!r} are damaged, or no weights ({type(error).__name__}); copy or download them again"
        ) from error
    kinds = {name.rpartition(".")[2] for name in named} & {"QuickGELU", "GELU"}
    if not kinds and "input_resolution" in tensors:  # a size that only OpenAI keeps
        kinds = {"QuickGELU"}
    return Archive(tensors, "QuickGELU" in kinds if kinds else None)


class _Records:
    """The parts of a zip file, in all no more bytes than the file has: small ones that unpack to huge ones exist."""

    def __init__(self, file: zipfile.ZipFile, root: str, size: int) -> None:
        self.file, self.root, self.left = file, root, size
        self.storages: dict[str, Tensor] = {}

    def read(self, name: str, most: int) -> bytes:
        """The bytes of a part."""
        part = self.file.getinfo(self.root + name)
        if part.compress_type != zipfile.ZIP_STORED or part.file_size > min(most, self.left):
            raise ValueError(f"{name} is compressed, or larger than such a part can be")
        self.left -= part.file_size
        return self.file.read(part)

    def storage(self, identity: Any) -> Tensor:
        """The numbers of ("storage", type, key, device, count), all in a row."""
        kind, made_of, key, _, count = identity
        if kind != "storage" or not isinstance(made_of, _Named) or not isinstance(key, str):
            raise ValueError("it refers to something that is no tensor")
        if key not in self.storages:
            dtype = _DTYPES.get(made_of.removeprefix("torch.").removesuffix("Storage"))
            if dtype is None:
                raise ValueError(f"it has numbers of the kind {made_of}")
            data = bytearray(self.read(f"data/{key}", self.left))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if len(self.storages[key]) < count:
            raise EOFError
        return self.storages[key]


def _described(data: bytes, storage: Callable[[Any], Tensor], named: set[str]) -> Any:
    """What a description says: plain values, tensors, `_Module`s. `named` gets the names of their classes.

    Longer than other functions because it is one table: an opcode of a pickle, and what it does to the stack.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        at = marks.pop()
        values = stack[at:]
        del stack[at:]
        return values

    value: Any
    for opcode, value, _ in pickletools.genops(data):
        match opcode.name:
            case (
                "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "NEWTRUE" | "NEWFALSE" | "NONE"
            ):
                stack.append({"NEWTRUE": True, "NEWFALSE": False}.get(opcode.name, value))
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[opcode.name])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(above_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(opcode.name[-1])
                stack[-n:] = [tuple(stack[-n:])]
            case "APPEND" | "APPENDS":
                values = [stack.pop()] if opcode.name == "APPEND" else above_mark()
                stack[-1].extend(values)
            case "SETITEM" | "SETITEMS":
                values = [stack.pop(-2), stack.pop()] if opcode.name == "SETITEM" else above_mark()
                stack[-1].update((_key(key), item) for key, item in zip(values[::2], values[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "GLOBAL":
                stack.append(_Named(value.replace(" ", ".")))
            case "NEWOBJ":
                stack.pop()
                named.add(_class(stack.pop()))
                stack.append(_Module())
            case "BUILD":
                state = stack.pop()
                stack[-1].state = state
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_made(stack.pop(), arguments))
            case "BINPERSID":
                stack.append(storage(stack.pop()))
            case "STOP":
                return stack.pop()
            case "PROTO" | "FRAME":
                pass
            case other:
                raise ValueError(f"its description has the opcode {other}")
    raise EOFError


def _key(key: Any) -> Any:
    """A key of a dictionary; a hash of anything nested could go arbitrarily deep."""
    if not isinstance(key, str | int | float):
        raise ValueError("it has a dictionary whose keys are neither texts nor numbers")
    return key


def _class(name: Any) -> str:
    if not isinstance(name, _Named) or not name.startswith("__torch__."):
        raise ValueError(f"it makes an object of {_shown(name)}")
    return name


def _made(function: Any, arguments: tuple[Any, ...]) -> Any:
    """What one of the few functions would give that torch writes into such files."""
    match function:
        case "torch._utils._rebuild_tensor_v2":
            storage, offset, size, stride = arguments[:4]
            return storage.as_strided(size, stride, offset)
        case "collections.OrderedDict":
            return {}
        case "torch.device":
            return str(arguments[0])
        case "torch.jit._pickle.restore_type_tag":
            return arguments[0]
        case str() if re.fullmatch(r"torch\.jit\._pickle\.build_(int|double|bool|tensor)list", function):
            return arguments[0]
    raise ValueError(f"it calls {_shown(function)}")


def _shown(name: Any) -> str:
    return repr(str(name)[:60]) if isinstance(name, str) else type(name).__name__


def _named_tensors(top: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a tree of modules by their path; a tree with loops, or with more branches than a model, is refused."""
    todo, seen = [("", top)], 0
    while todo:
        prefix, module = todo.pop()
        seen += 1
        if seen > 100_000 or len(prefix) > 1000:
            raise ValueError("its modules hold one another")
        state = module.state if isinstance(module, _Module) else None
        for name, value in state.items() if isinstance(state, dict) else ():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
            elif isinstance(value, _Module):
                todo.append((f"{prefix}{name}.", value))
