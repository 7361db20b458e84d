"""The same notebook without a front end: executed, compared with itself by nbval, small, silent, and with pictures."""

from __future__ import annotations

import base64
import html
import re

import nbformat
import pytest
from forked import Kernel
from jupyter_client.provisioning import local_provisioner
from nbclient import NotebookClient
from nbconvert import HTMLExporter

pytest_plugins = ["pytester"]
SETUP = """
from tiny import ToyDataset, make_tiny_backbone
from clipviz import Run
from clipviz.training.evaluate import spread_probe
from clipviz.methods import METHODS
from clipviz.methods.base import AdaptConfig
from clipviz import DKAPlayground, LiveMonitor, PrototypeExplorer, SaliencyExplorer
data = ToyDataset(16)
method = METHODS["microclip"](make_tiny_backbone(), data.prompts)
config = AdaptConfig(epochs=2, batch_size=4, lr=1e-3)
run = Run(method, data, config, eval_dataset=data, probe=spread_probe(data, 32, 4))
"""
CELLS = (
    SETUP,
    "monitor = LiveMonitor(run)\nmonitor",
    "monitor.start.click()\ntrace = await run\nprint(run.status, run.steps_done)",
    "monitor",
    "explorer = SaliencyExplorer(trace, run)\nexplorer.inspector.kinds['rollout'].value = True\nexplorer",
    "PrototypeExplorer(trace, run)",
    "playground = DKAPlayground(trace, run)\nplayground.gamma.value = 1.0\nplayground",
    "print(round(float(method.trainable_state()['learned_classifier'].abs().sum()), 3))",
)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("headless")
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell, id=f"c{i:02d}") for i, cell in enumerate(CELLS)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_provisioner, "launch_kernel", Kernel)
        NotebookClient(notebook, timeout=800, store_widget_state=False).execute(cwd=str(folder))
        path = folder / "views.ipynb"
        nbformat.write(notebook, path)
        yield path


def test_every_view_leaves_a_picture_and_nobody_prints(executed):
    notebook = nbformat.read(executed, as_version=4)
    assert executed.stat().st_size < 500_000
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    printed = [output["text"] for output in outputs if output.output_type == "stream"]
    assert printed[0] == "finished 8\n"
    assert len(printed) == 2
    shown = [output for output in outputs if output.output_type != "stream"]
    assert [output["data"]["text/plain"] for output in shown] == [
        "LiveMonitor(microclip on toy)",
        "LiveMonitor(microclip on toy)",
        "SaliencyExplorer(microCLIP)",
        "PrototypeExplorer(microCLIP)",
        "DKAPlayground(microclip)",
    ]
    for output in shown:
        assert len(base64.b64decode(output["data"]["image/jpeg"])) <= 60_000
        assert output["metadata"]["image/jpeg"]["alt"].startswith(output["data"]["text/plain"])
    assert "finished · step 8 of 8" in shown[1]["metadata"]["image/jpeg"]["alt"]


@pytest.mark.parametrize("template", ["lab", "classic"])
def test_a_page_made_of_it_shows_every_view_as_a_picture(executed, template):
    page, _ = HTMLExporter(template_name=template).from_filename(str(executed))
    notebook = nbformat.read(executed, as_version=4)
    shown = [output for cell in notebook.cells for output in cell.outputs if "image/jpeg" in output.get("data", {})]
    tags = re.findall(r"<img [^>]*data:image/jpeg[^>]*>", page)
    assert len(tags) == len(shown) == 5
    for output, tag in zip(shown, tags, strict=True):
        inside = tag.split("base64,")[1].split('"')[0]
        assert base64.b64decode(inside) == base64.b64decode(output["data"]["image/jpeg"])
        if template == "classic":  # nbconvert's lab template leaves alternative texts out
            assert f'alt="{html.escape(output["metadata"]["image/jpeg"]["alt"])}"' in tag


def test_a_second_execution_gives_the_same_outputs(executed, pytester):
    done = pytester.inline_run("-p", "no:cacheprovider", "--nbval", "--nbval-current-env", executed)
    assert done.ret == pytest.ExitCode.OK
    done.assertoutcome(passed=len(CELLS))
