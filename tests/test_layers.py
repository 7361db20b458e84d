"""The house: who may import whom, what stays free of torch, and that nothing is ever unpickled."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import clipviz

ROOT = Path(clipviz.__file__).parent

# Module or package of clipviz -> what it may import of clipviz, lowest first. Nothing else is allowed.
MAY_IMPORT: dict[str, str] = {
    # no clipviz below these
    "errors": "",
    "files": "",
    "origin": "",
    "changes": "errors",
    "interrupts": "",
    "events": "",
    # the stem with torch
    "ops": "",
    "ncut": "errors ops",
    "ownership": "",
    "tower": "errors ops",
    "weights": "errors",
    "backbone": "errors origin ops ownership tower weights",
    "prompts": "errors",
    "descriptions": "prompts",
    "describe": "errors files prompts",
    "parallel": "errors",
    "data": "errors files origin events ops ownership backbone prompts parallel",
    "birds": "errors ops tower backbone prompts data",
    "methods": "errors events ops ncut ownership backbone prompts data",
    "evaluate": "events ops ownership data methods parallel",
    "saliency": "errors ops ncut ownership backbone data birds methods",
    "looker": "ownership data methods saliency",
    "gallery": "events ownership data methods evaluate saliency",
    "refusals": "errors data methods parallel",
    "loop": "changes events ownership data methods evaluate gallery parallel refusals",
    "checkpoint": "errors files methods loop prompts",
    "build": "errors backbone data methods",
    "ladder": "events backbone data methods evaluate loop",
    # the stem without torch
    "trace_folder": "",
    "trace": "files trace_folder",
    "figures": "errors trace",
    "report": "errors files trace figures",
    "widgets": "errors events trace figures",
    # where they meet
    "recorder": "events ops trace",
    # on top of both
    "results": "backbone data methods evaluate loop parallel prompts trace",
    "run_folder": "files loop checkpoint results trace",
    "run": "changes interrupts events ownership data methods looker loop parallel recorder results run_folder trace",
    "commands": "errors files interrupts events data birds backbone methods evaluate loop build parallel results "
    "run_folder run trace figures report descriptions describe",
    "options": "",
    "cli": "interrupts options",
    "__main__": "cli",
}
# Imports inside a function that go up, each with its reason.
UPWARDS = {("data/loading.py", "birds")}  # a data set is looked up by name; the renderer is loaded on demand
TORCH_FREE = ("errors", "files", "events", "trace_folder", "trace", "figures", "report", "widgets")
TORCH = {"torch", "torchvision", "open_clip", "timm", "captum"}


def sources() -> Iterator[tuple[str, str, ast.Module]]:
    """(unit, path, syntax tree) of every file of the package; a unit is a module or package right below clipviz."""
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        yield relative.parts[0].removesuffix(".py"), relative.as_posix(), parse(path)


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of what is imported at run time, in functions too; `if TYPE_CHECKING:` does not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imports(node)


def clipviz_units(tree: ast.AST) -> set[str]:
    return {name.split(".")[1] for name in imports(tree) if name.startswith("clipviz.")} - {"__version__"}


def test_the_table_lists_every_module_and_no_other():
    units = {unit for unit, _, _ in sources()} - {"__init__"}
    assert units == set(MAY_IMPORT)


def test_the_table_goes_upwards_only():
    order = list(MAY_IMPORT)
    for unit, allowed in MAY_IMPORT.items():
        assert all(order.index(below) < order.index(unit) for below in allowed.split()), unit


def test_imports_follow_the_table():
    wrong = []
    for unit, path, tree in sources():
        allowed = {unit, *MAY_IMPORT.get(unit, "").split()}
        wrong += [f"{path} imports {other}" for other in clipviz_units(tree) - allowed if (path, other) not in UPWARDS]
    assert wrong == []


def test_the_two_stems_meet_in_the_recorder_only():
    torch_free = set(TORCH_FREE) - {"errors", "files", "events"}
    with_torch = {
        "ops",
        "ncut",
        "ownership",
        "tower",
        "backbone",
        "data",
        "birds",
        "methods",
        "evaluate",
        "saliency",
        "looker",
        "loop",
        "checkpoint",
        "build",
        "ladder",
    }
    on_top = {"results", "run", "run_folder", "commands", "options", "cli"}
    meeting = set()
    for unit, _, tree in sources():
        used = clipviz_units(tree)
        if used & torch_free and used & with_torch:
            meeting.add(unit)
    assert meeting - on_top == {"recorder"}


def test_the_torch_free_stem_never_imports_torch():
    wrong = []
    for unit, path, tree in sources():
        if unit in TORCH_FREE:
            wrong += [f"{path}: {name}" for name in imports(tree) if name.split(".")[0] in TORCH]
    assert wrong == []


@pytest.mark.parametrize(
    "statement",
    [
        "import clipviz",
        "import clipviz.trace, clipviz.figures, clipviz.report, clipviz.events, clipviz.errors, clipviz.files",
        "import clipviz.cli; clipviz.cli.build_parser()",
        "import clipviz; clipviz.Trace",
    ],
)
def test_what_is_free_of_torch_stays_free_of_torch(statement):
    check = f"import sys; {statement}; print(sorted({TORCH!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_had():
    assert set(clipviz.__all__) == set(clipviz._HOME)
    for name in clipviz.__all__:
        assert getattr(clipviz, name) is not None, name
        assert name in dir(clipviz)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        clipviz.nonsense  # noqa: B018


def test_nothing_is_unpickled():
    wrong = []
    for _, path, tree in sources():
        picklers = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
        wrong += [
            f"{path}: {name}"
            for name in imports(tree)
            if name.split(".")[0] in picklers and name != "pickle.UnpicklingError"  # the error may be caught
        ]
        wrong += [f"{path}:{call.lineno}: {ast.unparse(call)}" for call in calls(tree) if unpickles(call)]
    assert wrong == []


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def unpickles(call: ast.Call) -> bool:
    """torch.load without weights_only=True, numpy's allow_pickle, pandas' read_pickle."""
    function = ast.unparse(call.func)
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    return (
        (function == "torch.load" and options.get("weights_only") != "True")
        or options.get("allow_pickle", "False") != "False"
        or function.endswith((".read_pickle", ".to_pickle"))
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("torch.load(p)", True),
        ("torch.load(p, weights_only=False)", True),
        ("torch.load(p, weights_only=True)", False),
        ("np.load(p, allow_pickle=True)", True),
        ("np.load(p)", False),
        ("pd.read_pickle(p)", True),
    ],
)
def test_the_check_for_unpickling_can_fail(code, expected):
    assert unpickles(next(calls(ast.parse(code)))) is expected
