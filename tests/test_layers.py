"""The house: who may import whom, what stays free of torch, and that nothing is ever unpickled."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest
from forked import start

import clipviz

ROOT = Path(clipviz.__file__).parent

# Room (or module at the top, or single module of a room) of clipviz -> what it may import of clipviz, lowest first.
# Nothing else is allowed. The maps in `clipviz/__init__.py` and CONTRIBUTING.md are checked against this one.
MAY_IMPORT: dict[str, str] = {
    # no clipviz below these
    "errors": "",
    "files": "",
    "origin": "",
    "events": "",
    "instructive": "",
    # the stem with torch
    "ops": "",
    "ncut": "errors ops",
    "parallel": "errors",
    "backbone": "errors origin ops",
    "prompts": "errors files",
    "data": "errors files origin events ops parallel backbone prompts",
    "birds": "errors ops backbone prompts data",
    "methods": "errors events ops ncut backbone prompts data",
    "saliency": "errors ops ncut backbone data birds methods",
    "training": "errors files events instructive ops parallel backbone prompts data methods saliency",
    # the stem without torch
    "trace": "errors files",
    "figures": "errors files instructive trace",
    "report": "errors files trace figures",
    "training/follow": "errors events files trace",
    "widgets": "errors events files instructive trace figures report training/follow",
    # where they meet
    "training/recorder": "events ops trace",
    # on top of both
    "training/run_folder": "files parallel backbone prompts data methods training trace",
    "training/run": "errors events parallel backbone data methods training training/recorder training/run_folder "
    "training/follow trace",
    "training/opened": "errors files backbone prompts data methods training training/run_folder trace widgets",
    "cli": "errors files events parallel backbone prompts data birds methods training training/run training/run_folder "
    "training/follow trace figures report",
    "__main__": "cli",
}
# Imports inside a function that go up, each with its reason.
UPWARDS = {
    ("widgets/compare.py", "training/opened"),  # a run folder is opened with its model, where one is given by name
    ("data/sources/load.py", "birds"),  # a data set is looked up by name; the renderer is loaded on demand
}
TORCH_FREE = ("errors", "files", "events", "trace", "figures", "report", "widgets")
TORCH = {"torch", "torchvision", "open_clip", "timm", "captum"}


def unit_of(dotted: str) -> str:
    """ "training.run.Run" -> "training/run", "data.images.views" -> "data": the row of the table that speaks of it."""
    parts = dotted.split(".")
    single = "/".join(parts[:2])
    return single if single in MAY_IMPORT else parts[0]


def sources() -> Iterator[tuple[str, str, ast.Module]]:
    """(unit, path, syntax tree) of every file of the package."""
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        yield unit_of(".".join(relative.with_suffix("").parts)), relative.as_posix(), parse(path)


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
    names = {name.removeprefix("clipviz.") for name in imports(tree) if name.startswith("clipviz.")}
    return {unit_of(name) for name in names} - {"__version__"}


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
    torch_free = {"trace", "figures", "report", "widgets"}
    with_torch = {"ops", "ncut", "backbone", "data", "birds", "methods", "saliency", "training"}
    on_top = {"training/run", "training/run_folder", "training/opened", "cli"}
    used = {unit: set[str]() for unit in MAY_IMPORT}
    for unit, _, tree in sources():
        used[unit if unit in used else "cli"] |= clipviz_units(tree)
    assert {unit for unit, names in used.items() if names & torch_free and names & with_torch} - on_top == {
        "training/recorder"
    }


def test_no_two_modules_import_each_other_in_a_circle():
    graph = {path: modules_at_import(tree) for _, path, tree in sources()}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, with the circle


def modules_at_import(tree: ast.Module) -> set[str]:
    """Files of clipviz that a module imports when it is imported itself."""
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    found = set()
    for name in imports(ast.Module(top, [])):
        parts = name.split(".")[1:]
        for end in range(len(parts), 0, -1):
            file = Path(*parts[:end]).with_suffix(".py")
            if name.startswith("clipviz.") and (ROOT / file).exists():
                found.add(file.as_posix())
                break
    return found


def test_the_house_has_few_rooms():
    rooms = [p for p in [*ROOT.iterdir(), *ROOT.glob("*/*")] if p.is_dir() and p.name != "__pycache__"]
    assert len(rooms) <= 22
    assert len(list(ROOT.glob("*.py"))) <= 14


def test_files_and_functions_are_short():
    lines = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in ROOT.rglob("*.py")}
    assert [str(p) for p, n in lines.items() if n > 400] == []
    assert sum(lines.values()) < 22_000
    functions = [node for _, _, tree in sources() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions if f.end_lineno - f.lineno >= 60] == []


@pytest.mark.parametrize("place", ["clipviz/__init__.py", "CONTRIBUTING.md"])
def test_the_maps_are_those_of_the_table(place):
    text = (ROOT.parent / place).read_text(encoding="utf-8")
    drawn = re.search(r"with torch.*?\n\n[A-ZP`]", text, flags=re.S)
    assert drawn is not None
    units = {unit for unit in MAY_IMPORT if not unit.startswith("__")}
    missing = [unit for unit in units if not re.search(rf"\b{unit.split('/')[-1]}\b", drawn[0])]
    assert missing == []


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
        "import clipviz.cli.main; clipviz.cli.main.build_parser()",
        "import clipviz; clipviz.Trace, clipviz.figures.saliency_grid, clipviz.show, clipviz.save",
    ],
)
def test_what_is_free_of_torch_stays_free_of_torch(statement):
    check = f"import sys; {statement}; print(sorted({TORCH!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_had():
    assert set(clipviz.__all__) == set(clipviz._HOME) - {"open"}  # a star import leaves Python's own
    for name in clipviz._HOME:
        assert getattr(clipviz, name) is not None, name
        assert name in dir(clipviz)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        clipviz.nonsense  # noqa: B018


def star_imports() -> None:
    """A star import without each of two packages, hidden in two ways; what all need is imported once."""
    for name in [*sys.modules]:  # of the process that was forked: they know what is installed
        if name.split(".")[0] in ("clipviz", "anywidget", "ipywidgets"):
            del sys.modules[name]

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name == missing:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for missing in ("anywidget", "ipywidgets"):
        assert missing not in sys.modules
        for how in ("absent", "forbidden"):
            if os.fork() == 0:
                if how == "absent":
                    sys.modules[missing] = None
                else:
                    sys.meta_path.insert(0, Blocker())
                names, said = {}, ""
                exec("from clipviz import *", names)
                try:
                    _ = import_module("clipviz").LiveMonitor
                except ImportError as error:
                    said = str(error)
                print(missing, how, callable(names["Run"]), "LiveMonitor" in names, said, file=sys.stderr, flush=True)
                os._exit(0)
            os.wait()


def test_a_star_import_does_without_the_views_where_they_are_not_installed(tmp_path):
    """Not there at all, or forbidden by whoever runs it, who then says so."""
    start(star_imports, said=tmp_path / "said").join()
    written = (tmp_path / "said").read_text()
    assert written.splitlines() == [
        f"{missing} {how} True False {said}"
        for missing in ("anywidget", "ipywidgets")
        for how, said in {
            "absent": f"clipviz.widgets needs {missing}, which is not installed; pip install 'clipviz[lab]'",
            "forbidden": f"No module named '{missing}'",
        }.items()
    ]


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
        or function in ("torch.jit.load", "open_clip.load_openai_model")
        or options.get("allow_pickle", "False") != "False"
        or function.endswith((".read_pickle", ".to_pickle"))
    )


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("torch.load(p)", True),
        ("torch.jit.load(p)", True),
        ("torch.load(p, weights_only=False)", True),
        ("torch.load(p, weights_only=True)", False),
        ("np.load(p, allow_pickle=True)", True),
        ("np.load(p)", False),
        ("pd.read_pickle(p)", True),
    ],
)
def test_the_check_for_unpickling_can_fail(code, expected):
    assert unpickles(next(calls(ast.parse(code)))) is expected
