"""The committed notebooks: small, whole, honest about their outputs; their exercises know right from wrong."""

from __future__ import annotations

import ast
import base64
import importlib
import importlib.util
import io
import re
from pathlib import Path

import nbformat
import pytest
from forked import Kernel
from jupyter_client.provisioning import local_provisioner
from nbconvert import ScriptExporter
from PIL import Image

FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = (
    "01_quickstart", "02_zero_shot", "03_pseudo_labels", "04_ntua", "05_dpa", "06_soap", "07_dka", "08_saliency_lab",
    "09_your_data", "10_transduction", "11_streams",
)  # fmt: skip


def load_script():
    spec = importlib.util.spec_from_file_location("execute_notebooks", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = load_script()


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(name: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(name).cells if cell.cell_type == "code"]


def outputs(name: str) -> list[nbformat.NotebookNode]:
    return [output for cell in code_cells(name) for output in cell.outputs]


def pictures(name: str) -> list[tuple[bytes, dict]]:
    """Decoded pictures with their metadata."""
    found = []
    for output in outputs(name):
        for kind, data in output.get("data", {}).items():
            if kind.startswith("image/"):
                found.append((base64.b64decode(data), output.metadata.get(kind, {})))
    return found


def test_there_are_exactly_these_notebooks():
    assert tuple(sorted(path.stem for path in FOLDER.glob("*.ipynb"))) == NAMES


@pytest.mark.parametrize("name", NAMES)
class TestFile:
    def test_is_valid_and_under_a_megabyte(self, name):
        path = FOLDER / f"{name}.ipynb"
        nbformat.validate(read(name))
        assert path.stat().st_size < 1_000_000

    def test_holds_no_widget_state_and_no_trace_of_a_machine(self, name):
        notebook = read(name)
        assert notebook.metadata == execute.METADATA
        assert all(set(cell.metadata) <= {"jupyter", "tags"} for cell in notebook.cells)
        kinds = {kind for output in outputs(name) for kind in output.get("data", {})}
        assert kinds <= {"text/plain", "image/png", "image/jpeg", "text/html"}
        pages = [output.data["text/html"] for output in outputs(name) if "text/html" in output.get("data", {})]
        assert all(page.startswith('<div class="clipviz-explorable">') for page in pages)

    def test_as_a_script_it_is_python_with_its_text(self, name):
        script, about = ScriptExporter().from_notebook_node(notebook := read(name))
        assert about["output_extension"] == ".py"
        assert f"# {notebook.cells[0].source.splitlines()[0]}\n" in script

    def test_the_picture_of_a_run_is_of_its_end(self, name):
        said = [meta["alt"] for _, meta in pictures(name) if meta.get("alt", "").startswith("LiveMonitor(")]
        assert len(said) == sum(cell.source.split("\n")[-1].startswith("LiveMonitor(") for cell in code_cells(name))
        assert all("): finished · " in alt for alt in said)

    def test_what_it_imports_of_clipviz_is_there(self, name):
        trees = [ast.parse(cell.source.replace("await ", "")) for cell in code_cells(name)]
        found = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        ours = [
            (node.module, alias.name) for node in found if node.module.startswith("clipviz") for alias in node.names
        ]
        assert ours
        for module, thing in ours:
            there = hasattr(importlib.import_module(module), thing) or importlib.util.find_spec(f"{module}.{thing}")
            assert there, (module, thing)

    def test_tells_no_absolute_path(self, name):
        texts = [cell.source for cell in read(name).cells]
        texts += [line for cell in code_cells(name) for line in execute.readable(cell)]
        roots = re.compile(r"(?<![\w.:/])/(work|tmp|home|root|Users|usr|var|mnt|content)\b|[A-Z]:\\")
        assert [text for text in texts if roots.search(text)] == []

    def test_every_code_cell_was_executed_once_in_order_and_none_failed(self, name):
        counts = [cell.execution_count for cell in code_cells(name)]
        assert counts == list(range(1, len(counts) + 1))
        assert [output for output in outputs(name) if output.output_type == "error"] == []
        assert [output for output in outputs(name) if output.get("name") == "stderr"] == []

    def test_cell_ids_are_words_and_unique(self, name):
        ids = [cell.id for cell in read(name).cells]
        assert len(set(ids)) == len(ids)
        assert [cell_id for cell_id in ids if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", cell_id)] == []

    def test_it_prints_numbers_and_asserts_what_must_hold(self, name):
        """A line that ends in True or False teaches nothing, and True is no longer compared with anything."""
        lines = [line for cell in code_cells(name) for line in execute.readable(cell)]
        assert [line for line in lines if re.search(r": (True|False)$", line)] == []
        vague = [cell for cell in code_cells(name) if any("about " in line for line in execute.readable(cell))]
        assert [cell.id for cell in vague if not re.search(r"^ *assert ", cell.source, re.M)] == []

    def test_pictures_fit_the_page_and_most_of_them_have_words(self, name):
        found = pictures(name)
        assert len(found) >= 3
        assert max(Image.open(io.BytesIO(data)).width for data, _ in found) <= 900
        assert [metadata for _, metadata in found if not metadata.get("alt")] == []

    def test_says_what_you_learn_shows_a_widget_and_leads_on(self, name):
        notebook = read(name)
        text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
        assert "**You will learn**" in notebook.cells[0].source
        assert "What the paper" in text
        assert "clipviz.widgets" in code
        links = re.findall(r"\]\(((?!http)[^)#]+)", text)
        assert links
        assert [link for link in links if not (FOLDER / link).is_file()] == []


def test_readme_names_every_notebook_and_its_links_lead_somewhere():
    text = (FOLDER / "README.md").read_text()
    links = re.findall(r"\]\(((?!http)[^)#]+)", text)
    assert set(links) >= {f"{name}.ipynb" for name in NAMES}
    assert [link for link in links if not (FOLDER / link).is_file()] == []


# --------------------------------------------------------------------------------------------------- exercises


def exercise(name: str, number: int) -> tuple[str, str, str]:
    """The unanswered cell, the cell that checks, and the solution folded underneath."""
    cells = {cell.id: cell for cell in read(name).cells}
    solution = cells[f"exercise-{number}-solution"].source
    assert solution.startswith("<details>")
    (code,) = re.findall(r"```python\n(.*?)```", solution, re.S)
    return cells[f"exercise-{number}-answer"].source, cells[f"exercise-{number}-check"].source, code


def verdict(name: str, number: int, answer: str, capsys) -> str:
    """What the check prints about an answer, in a namespace that holds nothing but torch and the answer."""
    _, check, _ = exercise(name, number)
    namespace: dict = {}
    exec("import torch", namespace)
    exec(answer, namespace)
    capsys.readouterr()
    exec(check, namespace)
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_exercise_accepts_its_solution(name, number, capsys):
    assert verdict(name, number, exercise(name, number)[2], capsys).startswith("Right.")


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_check_of_an_exercise_is_folded_and_gives_nothing_away_before_there_is_an_answer(name, number, capsys):
    (cell,) = [cell for cell in read(name).cells if cell.id == f"exercise-{number}-check"]
    assert cell.metadata["jupyter"] == {"source_hidden": True}
    assert cell.outputs == []
    assert verdict(name, number, exercise(name, number)[0], capsys) == ""


WRONG = [
    ("01_quickstart", 1, "def accuracy_at(trace, epoch):\n    t = trace.predictions\n"
     "    return (t['prediction'] == t['target']).mean()", "rows of the epoch"),
    ("01_quickstart", 1, "def accuracy_at(trace, epoch):\n    t = trace.predictions\n    t = t[t['epoch'] == epoch]\n"
     "    return 100 * (t['prediction'] == t['target']).mean()", "between 0 and 1"),
    ("01_quickstart", 2, "uses = {'a', 'b', 'c'}", "supervised"),
    ("01_quickstart", 2, "uses = {'a', 'c', 'd'}", "last epoch"),
    ("01_quickstart", 2, "uses = {'a', 'c', 'x'}", "letters"),
    ("02_zero_shot", 1, "def class_vector(s):\n    return s.mean(0)", "length is not 1"),
    ("02_zero_shot", 1, "def class_vector(s):\n    return s.mean(1)", "shape"),
    ("02_zero_shot", 2, "probability = 0.5125", "multiply them by the scale"),
    ("03_pseudo_labels", 1, "def ece(c, r):\n    return sum(abs(c[(c * 10).astype(int) == b].mean() - "
     "r[(c * 10).astype(int) == b].mean()) for b in (1, 5, 9)) / 3", "number of guesses"),
    ("03_pseudo_labels", 2, "share = 0.1", "minimise"),
    ("04_ntua", 1, "def cache(f, F, V, alpha, beta):\n    return torch.exp(-beta * (1 - f @ F.T)) @ V", "alpha"),
    ("04_ntua", 1, "def cache(f, F, V, alpha, beta):\n    return alpha * torch.exp(beta * (1 - f @ F.T)) @ V", "minus"),
    ("04_ntua", 1, "def cache(f, F, V, alpha, beta):\n    return f @ F.T", "(3, 4)"),
    ("04_ntua", 2, "share = 0.0183", "1 - cosine"),
    ("05_dpa", 1, "def prototypes(f, y, Z):\n    return torch.stack([f[y == c].mean(0) for c in range(4)])", "class 2"),
    ("05_dpa", 1, "def prototypes(f, y, Z):\n    return torch.stack([f[y == c].mean(0) if (y == c).any() else Z[c] "
     "for c in range(4)])", "lengths"),
    ("05_dpa", 2, "omega = 0.55", "mixed probability"),
    ("05_dpa", 2, "omega = 0.25", "class 0"),
    ("06_soap", 1, "def stable_mask(f):\n    f = f * f[f.abs().argmax()].sign()\n    return f > f.mean()",
     "f.std()"),
    ("07_dka", 2, "gamma = 3 / 7", "weighs the static"),
    ("08_saliency_lab", 1, "def hit(s, r):\n    return r.flatten()[s.argmax()]", "one bool"),
    ("08_saliency_lab", 1, "def hit(s, r):\n    return False", "lies inside"),
    ("08_saliency_lab", 2, "mass = 3", "1/64"),
    ("09_your_data", 1, "descriptions = {'red-capped finch': ['A finch.']}", "white eyed owl"),
    ("09_your_data", 2, "command = 'clipviz adapt microclip --model ViT-B-32 --pretrained openai --data photos "
     "--out runs/a'", "should go on"),
    ("09_your_data", 2, "command = 'clipviz adapt microclip --resume'", "is missing"),
    ("10_transduction", 1, "def decide(y, g, z, w, r):\n    return y.T", "(5, 3)"),
    ("10_transduction", 1, "def decide(y, g, z, w, r):\n    return (y + g).softmax(-1)", "neighbors are missing"),
    ("10_transduction", 1, "def decide(y, g, z, w, r):\n    return (y + g + (w[..., None] * z[r]).sum(1)).softmax(-1)",
     "divide the votes by k"),
    ("10_transduction", 1, "def decide(y, g, z, w, r):\n    return y + g + (w[..., None] * z[r]).mean(1)", "logits"),
    ("10_transduction", 2, "share = 4 / 5", "share of the images"),
    ("10_transduction", 2, "share = 1 / 4", "alpha counts too"),
    ("01_quickstart", 1, "def accuracy_at(trace, epoch):\n    return 0.0", "compare two columns"),
    ("01_quickstart", 2, "uses = set()", "something to look at"),
    ("02_zero_shot", 1, "def class_vector(s):\n    return s[0]", "all sentences count alike"),
    ("02_zero_shot", 2, "probability = 0.5", "with two classes"),
    ("03_pseudo_labels", 1, "def ece(c, r):\n    return abs(c.mean() - r.mean())", "bin by bin"),
    ("03_pseudo_labels", 2, "share = 0.9", "the term does not know"),
    ("04_ntua", 1, "def cache(f, F, V, alpha, beta):\n    return f @ F.T @ V", "exp(-beta"),
    ("04_ntua", 2, "share = 0.8", "identical key"),
    ("05_dpa", 1, "def prototypes(f, y, Z):\n    return Z", "average the rows"),
    ("05_dpa", 2, "omega = 1.0", "p(1)"),
    ("06_soap", 1, "def stable_mask(f):\n    return f > f.std()", "fix the sign"),
    ("07_dka", 2, "gamma = 0.5", "for the other class"),
    ("08_saliency_lab", 1, "def hit(s, r):\n    return bool((s * r).sum() > 0)", "highest cell does not"),
    ("08_saliency_lab", 2, "mass = 0.5", "coin toss"),
    ("09_your_data", 2, "command = 'clipviz adapt microclip --data photos'", "--model ViT-B-32"),
    ("10_transduction", 1, "def decide(y, g, z, w, r):\n    return y.softmax(-1)", "add three things"),
    ("10_transduction", 2, "share = 0.5", "work out b"),
    ("06_soap", 2, "share = 0", "runs over all patches"),
    ("06_soap", 2, "share = 0.452", "square root of the width"),
    ("06_soap", 2, "share = 0.5035", "not their sum"),
    ("06_soap", 2, "share = 1 / 3", "three products"),
    ("07_dka", 1, "def static_row(d, t):\n    return d @ t", "wanted one vector"),
    ("07_dka", 1, "def static_row(d, t):\n    return (d @ t) @ d", "length is not 1"),
    ("07_dka", 1, "def static_row(d, t):\n    return d.mean(0)", "the learned head"),
    ("07_dka", 1, "def static_row(d, t):\n    return t", "are the weights"),
    ("11_streams", 1, "def store(cache, confidence, image):\n    cache.append((confidence, image))",
     "return the cache"),
    ("11_streams", 1, "def store(cache, confidence, image):\n    return [*cache, (confidence, image)]", "holds three"),
    ("11_streams", 1, "def store(cache, confidence, image):\n    return sorted([*cache, (confidence, image)])[-3:]",
     "surest first"),
    ("11_streams", 1, "def store(cache, confidence, image):\n    return [*cache, (confidence, image)][:3]", "sort by"),
    ("11_streams", 2, "lead = 2 * (2.718281828 ** -1 - 2.718281828 ** -0.25)", "A has three"),
    ("11_streams", 2, "lead = 3 * 2.718281828 ** -1 - 2.718281828 ** -0.25", "alpha is missing"),
    ("11_streams", 2, "lead = 0", "for each image"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "number", "answer", "hint"), WRONG)
def test_exercise_refuses_a_wrong_answer_with_its_hint(name, number, answer, hint, capsys):
    said = verdict(name, number, answer, capsys)
    assert said.startswith("Not yet: ")
    assert hint in said


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_to_the_third_exercise_names_a_figure_to_compare_with(name):
    """The heading that it stands under, which must be there, with a picture below it."""
    cells = read(name).cells
    headings = [re.findall(r"^#+ (.+)$", cell.source, re.M) for cell in cells]
    (explain,) = [cell.source for cell in cells if cell.id == "exercise-3-explain"]
    answer = explain[explain.index("<details>") :]
    assert "Compare" in answer.split("</summary>")[1]
    drawn, heading = set(), ""
    for cell, found in zip(cells, headings, strict=True):
        heading = found[-1] if found and cell.cell_type == "markdown" else heading
        if any(kind.startswith("image/") for output in cell.get("outputs", []) for kind in output.get("data", {})):
            drawn.add(heading)
    named = [title for title in re.findall(r"\*([^*]+)\*", answer) if any(title in heading for heading in drawn)]
    assert named, (re.findall(r"\*([^*]+)\*", answer), drawn)


# --------------------------------------------------------------------------------------------------- the script


@pytest.fixture
def forked_kernels(monkeypatch):
    """Kernels start at once; the processor time of those that are forked is not their client's, though."""
    monkeypatch.setattr(local_provisioner, "launch_kernel", Kernel)


def tiny(*sources: str) -> nbformat.NotebookNode:
    cells = [nbformat.v4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    return nbformat.v4.new_notebook(cells=cells)


@pytest.mark.usefixtures("forked_kernels")
def test_executing_gives_outputs_without_state_times_or_widgets(tmp_path):
    fresh = execute.execute(
        tiny("import ipywidgets\nipywidgets.IntSlider(3)", "print('a')\nprint('b')", "1 + 1"), tmp_path
    )
    assert [execute.readable(cell) for cell in fresh.cells[1:]] == [["a", "b"], ["[text/plain]", "2"]]
    assert [cell.execution_count for cell in fresh.cells] == [1, 2, 3]
    assert fresh.metadata == execute.METADATA
    assert all(cell.metadata == {} for cell in fresh.cells)
    assert set(fresh.cells[0].outputs[0].data) == {"text/plain"}


def with_output(text: str, picture: str) -> nbformat.NotebookNode:
    notebook = tiny("x")
    data = {"text/plain": text, "image/png": picture}
    notebook.cells[0].outputs = [nbformat.v4.new_output("display_data", data=data)]
    return notebook


def test_differences_are_those_that_a_reader_reads():
    assert execute.differences(with_output("7 of 9", "AAAA"), with_output("7 of 9", "BBBB")) == []
    changed = execute.differences(with_output("7 of 9", "AAAA"), with_output("6 of 9", "AAAA"))
    assert "-7 of 9" in changed
    assert "+6 of 9" in changed


def test_of_an_explorable_the_text_beside_it_is_compared():
    old, new = with_output("Explorable(cut)", "AAAA"), with_output("Explorable(cut)", "AAAA")
    for notebook, digits in ((old, "0.1234"), (new, "0.1235")):
        notebook.cells[0].outputs[0].data["text/html"] = f"<script>{digits}</script>"
    assert execute.differences(old, new) == []
    new.cells[0].outputs[0].data["text/plain"] = "Explorable(gamma)"
    assert execute.differences(old, new) != []


def test_digits_after_about_may_differ_and_nothing_else():
    old = with_output("right: about 74% before, about 81.5 after", "AAAA")
    assert execute.differences(old, with_output("right: about 75% before, about 80 after", "AAAA")) == []
    for other in ("right: 74% before, about 81.5 after", "wrong: about 74% before, about 81.5 after"):
        assert execute.differences(old, with_output(other, "AAAA"))


@pytest.mark.usefixtures("forked_kernels")
def test_check_fails_and_writes_nothing_where_an_output_changed(tmp_path, monkeypatch, capsys):
    path = tmp_path / "01_tiny.ipynb"
    stale = tiny("print('new')")
    stale.cells[0].outputs = [nbformat.v4.new_output("stream", name="stdout", text="old\n")]
    nbformat.write(stale, path)
    before = path.read_bytes()
    monkeypatch.setattr(execute, "FOLDER", tmp_path)
    assert execute.main(["--check"]) == 1
    assert "-old" in capsys.readouterr().out
    assert path.read_bytes() == before
    assert execute.main([]) == 0
    assert execute.main(["--check", "01"]) == 0


def test_teachers_see_the_notebooks_that_are_there():
    """If it fails: `python notebooks/execute.py --table`; "?" wants the notebook executed."""
    page = (FOLDER.parent / "docs/teaching.md").read_text(encoding="utf-8")
    assert execute.with_table(page, {}) == page
    assert [name for name, seconds in execute.ROW.findall(page) if float(seconds) > 0] == list(NAMES)


def test_executing_measures_a_row_of_the_table_and_keeps_the_others(tmp_path, monkeypatch):
    folder, page = tmp_path / "notebooks", tmp_path / "docs" / "teaching.md"
    for place in (folder, page.parent):
        place.mkdir()
    for name, seconds in (("01_slow", 0.6), ("02_kept", 0)):
        busy = f"import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass"
        notebook = tiny(busy)
        notebook.cells[:0] = [nbformat.v4.new_markdown_cell("# 1 \u00b7 Slow\n\n- one idea\n- another", id="title")]
        notebook.cells += [nbformat.v4.new_markdown_cell("## Exercise 1: a task", id="exercise-1")]
        nbformat.write(notebook, folder / f"{name}.ipynb")
    row = "| [1 \u00b7 Slow](../notebooks/{}.ipynb) | {} | 0.0 | 2 | 1 |"
    page.write_text(f"<!-- notebooks -->\n{row.format('02_kept', 41)}\n<!-- /notebooks -->\n")
    monkeypatch.setattr(execute, "FOLDER", folder)
    assert execute.main(["01"]) == 0
    found = dict(execute.ROW.findall(page.read_text()))
    assert 1 <= float(found["01_slow"]) < 30
    assert found["02_kept"] == "41"
    assert row.format("02_kept", 41) in page.read_text().splitlines()


@pytest.mark.usefixtures("forked_kernels")
def test_check_fails_where_a_cell_fails(tmp_path, monkeypatch, capsys):
    nbformat.write(tiny("1 / 0"), tmp_path / "01_tiny.ipynb")
    monkeypatch.setattr(execute, "FOLDER", tmp_path)
    assert execute.main(["--check"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(SystemExit, match="01_quickstart"):
        execute.notebooks(["99"])
