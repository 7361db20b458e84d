"""The tensors of a TorchScript archive, read as data: `torch.jit.load` would run the code that it holds.

An archive is a zip file. Its data.pkl describes the tree of modules, its data/ holds the bytes of the tensors, and its
code/ is never opened. The description is followed opcode by opcode, and only those opcodes are known that make numbers,
texts, containers, tensors and modules; nothing is imported or called because a file names it. Layout: torch's
`torch/csrc/jit/serialization` (pickler.cpp, export_module.cpp).
"""

import os
import pickletools
import re
import zipfile
from collections.abc import Callable
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
_RETURNS_ITS_ARGUMENT = re.compile(r"torch\.jit\._pickle\.(restore_type_tag|build_(int|double|bool|tensor)list)")


class Archive(NamedTuple):
    """What a TorchScript archive says of a model."""

    tensors: dict[str, Tensor]  # by their names in a state_dict; attributes that are tensors are among them
    quick_gelu: bool | None  # whether its activation is QuickGELU; None if its modules do not say


class _Named(str):
    """A class or function that the file names: inert."""


class _Module:
    """In the place of any `__torch__` class: its name, and its attributes, if it has any."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Any = {}


def is_script_archive(path: str) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI published its models: a zip file with code in it."""
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.endswith("constants.pkl") for name in file.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def read_archive(path: str) -> Archive:
    """Read the tensors of a TorchScript archive, and run nothing; anything but modules and plain values is refused."""
    try:
        with zipfile.ZipFile(path) as file:
            root = next(n.removesuffix("constants.pkl") for n in file.namelist() if n.endswith("constants.pkl"))
            parts = _Parts(file, root, os.path.getsize(path))
            tensors, names = _contents(_described(parts.read("data.pkl", _MOST_BYTES), parts.storage))
            if not tensors:
                raise ValueError("it holds no weights")
    except ValueError as error:
        raise ValueError(f"the weights {path!r} are a TorchScript archive, which is never run, and {error}") from None
    except Exception as error:  # a damaged file raises whatever reading it raises
        raise ValueError(
            f"the weights {path!r} are damaged, or not weights ({type(error).__name__}); copy or download them again"
        ) from error
    kinds = {name.rpartition(".")[2] for name in names} & {"QuickGELU", "GELU"}
    if not kinds and "input_resolution" in tensors:  # a size that only OpenAI keeps
        kinds = {"QuickGELU"}
    return Archive(tensors, "QuickGELU" in kinds if kinds else None)


class _Parts:
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
        match identity:
            case ("storage", _Named() as kind, str() as key, _, int() as count):
                dtype = _DTYPES.get(kind.removeprefix("torch.").removesuffix("Storage"))
            case _:
                raise ValueError("it refers to something that is not a tensor")
        if dtype is None:
            raise ValueError(f"it has numbers of the kind {kind}")
        if key not in self.storages:
            data = bytearray(self.read(f"data/{key}", self.left))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        if len(self.storages[key]) < count:
            raise EOFError
        return self.storages[key]


def _described(data: bytes, storage: Callable[[Any], Tensor]) -> Any:
    """What a description says: plain values, tensors, `_Module`s.

    Longer than other functions because it is one table: an opcode of a pickle, and what it does to the stack.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def above(mark: int) -> list[Any]:
        values = stack[mark:]
        del stack[mark:]
        return values

    value: Any
    for opcode, value, _ in pickletools.genops(data):
        match opcode.name:
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "NONE":
                stack.append(value)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[opcode.name])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(above(marks.pop() if opcode.name == "TUPLE" else -int(opcode.name[-1]))))
            case "APPEND" | "APPENDS":
                values = above(marks.pop() if opcode.name == "APPENDS" else -1)
                stack[-1].extend(values)
            case "SETITEM" | "SETITEMS":
                values = above(marks.pop() if opcode.name == "SETITEMS" else -2)
                if not all(isinstance(key, str | int | float) for key in values[::2]):
                    # a hash of anything nested could go arbitrarily deep
                    raise ValueError("it has a dictionary whose keys are neither texts nor numbers")
                stack[-1].update(zip(values[::2], values[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "GLOBAL":
                stack.append(_Named(value.replace(" ", ".")))
            case "NEWOBJ" | "REDUCE":
                function, arguments = above(-2)
                stack.append(_made(function, arguments, opcode.name))
            case "BUILD":
                module, state = stack[-2], stack.pop()
                module.state = state
            case "BINPERSID":
                stack.append(storage(stack.pop()))
            case "STOP":
                return stack.pop()
            case "PROTO" | "FRAME":
                pass
            case other:
                raise ValueError(f"its description has the opcode {other}")
    raise EOFError


def _made(function: Any, arguments: tuple[Any, ...], opcode: str) -> Any:
    """A module, or what one of the few functions would give that torch writes into such files."""
    match opcode, function:
        case "NEWOBJ", _Named() if function.startswith("__torch__."):
            return _Module(function)
        case "REDUCE", "torch._utils._rebuild_tensor_v2":
            storage, offset, size, stride = arguments[:4]
            return storage.as_strided(size, stride, offset)
        case "REDUCE", "collections.OrderedDict":
            return {}
        case "REDUCE", "torch.device":
            return str(arguments[0])
        case "REDUCE", str() if _RETURNS_ITS_ARGUMENT.fullmatch(function):
            return arguments[0]
    shown = repr(str(function)[:60]) if isinstance(function, str) else type(function).__name__
    raise ValueError(f"it {'calls' if opcode == 'REDUCE' else 'makes an object of'} {shown}")


def _contents(top: Any) -> tuple[dict[str, Tensor], set[str]]:
    """Tensors of a tree of modules by their path, and names of its classes; loops and too many branches are refused."""
    todo, seen = [("", top)], 0
    tensors, names = {}, set()
    while todo:
        prefix, module = todo.pop()
        seen += 1
        if seen > 100_000 or len(prefix) > 1000:
            raise ValueError("its modules contain each other")
        if not isinstance(module, _Module) or not isinstance(module.state, dict):
            continue
        names.add(module.name)
        for name, value in module.state.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, _Module):
                todo.append((f"{prefix}{name}.", value))
    return tensors, names
