"""The project's own files: environment, CI, README and CONTRIBUTING say what is true."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from tiny import method_state

import clipviz
from clipviz.events import EpochFinished, StepFinished
from clipviz.methods.base import AdaptConfig
from clipviz.training.evaluate import predict
from clipviz.training.loop import adapt
from clipviz.training.run import Run

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def code_blocks(name, language="python"):
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / name).read_text(), flags=re.M | re.S)


# ------------------------------------------------------------------------------------------------- environments


def test_the_conda_environment_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert environment["name"] == PROJECT["name"]
    python = next(entry for entry in plain if entry.startswith("python="))
    assert PROJECT["requires-python"] == ">=3.11"
    assert tuple(map(int, python.removeprefix("python=").split("."))) >= (3, 11)
    assert "pip" in plain
    # one list of dependencies: whatever is named here besides Python would be a second one
    assert sorted(plain) == ["pip", python]
    assert pip == ["-e .[test]"]
    assert "test" in PROJECT["optional-dependencies"]


def test_the_extras_contain_each_other():
    extras = PROJECT["optional-dependencies"]
    (own,) = [name for name in extras["test"] if name.startswith("clipviz[")]
    assert "lab" in re.split(r"[\[\],]", own)
    assert {"jupyterlab", "ipykernel", "ipywidgets"} <= {re.split(r"[<>=\[]", name)[0] for name in extras["lab"]}


def test_every_package_that_is_imported_is_a_declared_dependency():
    declared = {re.split(r"[<>=\[]", name)[0].lower().replace("-", "_") for name in PROJECT["dependencies"]}
    for extra in ("lab", "multi"):
        names = PROJECT["optional-dependencies"][extra]
        declared |= {re.split(r"[<>=\[]", name)[0].lower().replace("-", "_") for name in names}
    known = {"open_clip": "open_clip_torch", "PIL": "pillow", "IPython": "ipykernel", "traitlets": "ipywidgets"}
    optional = {"playwright"}  # imported where it is used, with a ValueError that says how to get it
    missing = set()
    for path in (ROOT / "clipviz").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in {name.split(".")[0] for name in names} - {"clipviz", "__future__"} - optional:
                if name not in sys.stdlib_module_names and known.get(name, name).lower() not in declared:
                    missing.add((path.name, name))
    assert missing == set()


def test_the_ci_script_is_executable_bash_that_runs_what_readme_says():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text()
    assert "set -euo pipefail" in text
    for command in (
        '/uv" pip install --quiet --python "$scratch/venv" -e ".[test]"',
        '/pip" install --no-compile --quiet -e ".[test]"',
        '/pytest" -n auto --dist loadfile',
        "format --no-cache --check",
        "check --no-cache",
        "/mypy",
    ):
        assert command in text, command
    install = 'python3 -m venv .venv && .venv/bin/pip install -e ".[test]"'
    assert f"{install} && .venv/bin/pytest -n auto --dist loadfile\n" in (ROOT / "README.md").read_text()


def test_the_readme_example_runs(tmp_path, monkeypatch):
    """The six lines, on fewer images and one epoch."""
    (code,) = [block for block in code_blocks("README.md") if "import clipviz" in block]
    code, found = re.subn(r"n=\d+", "n=12", code)
    assert found == 2
    monkeypatch.chdir(tmp_path)
    from clipviz.methods.microclip import MicroCLIP

    monkeypatch.setattr(MicroCLIP, "schedule", property(lambda self: AdaptConfig(epochs=1, batch_size=12)))
    namespace = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert isinstance(namespace["trace"], clipviz.Trace)
    assert (tmp_path / "report.html").stat().st_size > 100_000


# ------------------------------------------------------------------------------------------------- methods from outside


@pytest.fixture(scope="module")
def tent():
    """The walkthrough of CONTRIBUTING.md as a module."""
    (code,) = [block for block in code_blocks("CONTRIBUTING.md") if "class Tent" in block]
    namespace = {"__name__": "tent"}
    exec(compile(code, "CONTRIBUTING.md", "exec", dont_inherit=True), namespace)
    namespace["code"] = code
    return namespace


CONFIG = AdaptConfig(epochs=3, batch_size=8, lr=3e-3, weight_decay=0.0)


def test_the_walkthrough_is_short_and_lints(tent, tmp_path):
    assert len(tent["code"].splitlines()) < 80
    path = tmp_path / "tent.py"
    path.write_text(tent["code"])
    config = ROOT / "pyproject.toml"
    for command in (["ruff", "check", "--config", config], ["ruff", "format", "--check", "--config", config]):
        command = [sys.executable, "-m", *command, "--no-cache", path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_its_entropy_has_the_known_answers(tent):
    entropy = tent["entropy"](torch.tensor([[0.0, 0.0, 0.0, 0.0], [200.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(entropy, torch.tensor([4.0, 1.0]).log())


def test_it_adapts_the_layer_norms_and_lowers_the_entropy(tent, tiny_backbone, toy, toy_test):
    before = tiny_backbone.fingerprint()
    method = tent["Tent"](tiny_backbone, toy.prompts)
    start = method_state(method)
    assert all("ln" in name for name in start if name != "classifier")
    events = list(adapt(method, toy, CONFIG, eval_dataset=toy_test))
    steps = [event for event in events if isinstance(event, StepFinished)]
    assert len(steps) == 9
    assert steps[-1].losses["entropy"] < steps[0].losses["entropy"]
    last = [event for event in events if isinstance(event, EpochFinished)][-1]
    assert last.metrics.keys() >= {"accuracy", "pseudo_label_accuracy", "entropy"}
    moved = [name for name, tensor in method_state(method).items() if not torch.equal(tensor, start[name])]
    assert moved
    assert "classifier" not in moved
    assert tiny_backbone.fingerprint() == before
    assert not torch.equal(
        predict(method, toy_test).probs, predict(tent["Tent"](tiny_backbone, toy.prompts), toy_test).probs
    )


def test_it_is_checkpointed_resumed_recorded_and_reported_like_any_other(tent, tiny_backbone, toy, tmp_path):
    def make_run():
        return Run(tent["Tent"](tiny_backbone, toy.prompts), toy, CONFIG, eval_dataset=toy, folder=tmp_path / "run")

    run = make_run()
    run.listeners.append(lambda event: run.stop() if isinstance(event, StepFinished) and event.step == 4 else None)
    run.fit()
    resumed = make_run()
    assert resumed.restore()
    trace = resumed.fit()
    assert len(trace.steps) == 9 * 2
    assert clipviz.write_report([trace], tmp_path / "report.html").stat().st_size > 100_000


def test_the_walkthrough_runs_as_a_script(tent, capsys):
    code, found = re.subn(r"n=\d+", "n=16", tent["code"])
    assert found == 1
    exec(compile(code, "CONTRIBUTING.md", "exec", dont_inherit=True), {"__name__": "__main__"})
    assert re.search(r"-1 +0\.\d+\n ?0 +0\.\d+", capsys.readouterr().out)


# ------------------------------------------------------------------------------------------------- what neighbours have


def test_the_citation_names_this_version_and_every_paper_of_a_method():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["title"], citation["version"]) == (PROJECT["name"], clipviz.__version__)
    assert citation["license"] == PROJECT["license"]
    titles = " ".join(paper["title"] for paper in citation["references"])
    for method in ("microCLIP", "DPA", "Unsupervised Adapter", "Transduction", "Realistic", "Efficient", "Gaussian"):
        assert method in titles
    for paper in citation["references"]:
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", paper["identifiers"][0]["value"])


def test_the_changelog_has_this_version_and_what_is_to_come():
    versions = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert any(version.split()[0].rstrip(",") == clipviz.__version__ for version in versions)
    assert set(re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)) <= {
        "Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"
    }  # fmt: skip


def test_a_commit_is_checked_by_the_tools_of_ci():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    tools = {re.split(r"[<>=\[]", name)[0] for name in PROJECT["optional-dependencies"]["test"]}
    assert {hook["entry"].split()[0] for hook in hooks} == {"ruff", "mypy"} <= tools
    assert {hook["id"] for hook in hooks} == {"ruff-format", "ruff-check", "mypy"}


def test_types_are_there_for_users():
    assert (ROOT / "clipviz" / "py.typed").is_file()


# ------------------------------------------------------------------------------------------------- walks


def defined(path):
    """Names that a file defines: those at its top, and Class.name of methods and fields."""
    names = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        for inner, before in [(node, "")] + [
            (part, f"{node.name}.") for part in getattr(node, "body", ()) if isinstance(node, ast.ClassDef)
        ]:
            targets = inner.targets if isinstance(inner, ast.Assign) else [getattr(inner, "target", inner)]
            names |= {before + (getattr(target, "id", None) or getattr(target, "name", "")) for target in targets}
    return names


def test_three_walks_of_ten_lines_lead_through_files_and_names_that_exist():
    walks = re.findall(r"^\*\*(.+)\*\*\n\n((?:\d+\. .+\n)+)", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.M)
    assert [title.partition(",")[0] for title, _ in walks] == ["A batch", "Gamma", "A pseudo-label"]
    for title, lines in walks:
        steps = lines.splitlines()
        assert [step.partition(".")[0] for step in steps] == [str(n) for n in range(1, 11)], title
        for step in steps:
            found = re.findall(r"`(clipviz/[^`]+\.py)`((?: `[\w.]+`)+)", step)
            assert found, step
            for path, names in found:
                assert set(re.findall(r"[\w.]+", names)) <= defined(path), step
