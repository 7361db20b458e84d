"""What runs are called: runs of one method by what differs between their settings, everywhere the same."""

from __future__ import annotations

import pytest
from synthetic import synthetic_trace

from clipviz import figures
from clipviz.report.summary import summarize
from clipviz.trace import Trace
from clipviz.widgets import SaliencyExplorer

TWO = ["microCLIP, run 1", "microCLIP, run 2"]


def run(method="microclip", constants=None, schedule=None, **meta):
    return Trace(meta={"method": method, "settings": {"method": constants or {}, "schedule": schedule or {}}, **meta})


@pytest.mark.parametrize(
    ("runs", "labels"),
    [
        ([run(), run("dpa")], ["microCLIP", "DPA"]),
        ([run(constants={"gamma": g, "tau": 0.4}) for g in (0.3, 0.5)],
         ["microCLIP, gamma 0.3", "microCLIP, gamma 0.5"]),
        ([run(seed=0), run(seed=1), run("dpa", seed=0)], ["microCLIP, seed 0", "microCLIP, seed 1", "DPA"]),
        ([run(schedule={"lr": 1e-3, "workers": w}) for w in (0, 2)], TWO),
        ([run(schedule={"epochs": n}) for n in (1, 15)], ["microCLIP, 1 epoch", "microCLIP, 15 epochs"]),
        ([run(model=m) for m in ("birds", "ViT-B-32")], ["microCLIP, birds", "microCLIP, ViT-B-32"]),
        ([run(data=d) for d in ("a", "b")], ["microCLIP, on a", "microCLIP, on b"]),
        ([run(descriptions=d) for d in ("one.json", "0 sentences")],
         ["microCLIP, descriptions one.json", "microCLIP, descriptions 0 sentences"]),
        ([run(constants={"soap": s}, changes=c) for s, c in ((True, ()), (False, [{"step": 4, "gamma": 0.3}]))],
         ["microCLIP, soap on, gamma unknown", "microCLIP, soap off, gamma 0.3 from step 4"]),
        ([run(constants={"gamma": 0.5}, changes=c) for c in ((), [{"step": 4, "gamma": 0.3}])],
         ["microCLIP, gamma 0.5", "microCLIP, gamma 0.5, 0.3 from step 4"]),
        ([run(constants={"crop_scale": s}) for s in ((0.7, 1.0), [0.7, 1.0])], TWO),
        ([run(label="mine"), run(label="mine", seed=3)], ["mine, seed unknown", "mine, seed 3"]),
    ],
)  # fmt: skip
def test_runs_are_called_by_what_differs_between_them(runs, labels):
    assert figures.trace_labels(runs) == labels


def test_of_many_differences_as_many_as_tell_the_runs_apart():
    runs = [run(constants=dict.fromkeys("abcde", i)) for i in range(2)]
    assert figures.trace_labels(runs) == [f"microCLIP, a {i}, b {i}, c {i} and 2 more" for i in range(2)]
    runs = [run(constants={**dict.fromkeys("abcd", i > 0), "e": i}) for i in range(3)]
    assert figures.trace_labels(runs)[2] == "microCLIP, a on, b on, c on, d on, e 2"


def test_runs_that_differ_in_nothing_are_called_by_their_folders(tmp_path):
    folders = [tmp_path / name for name in ("a/run", "b/run", "c")]
    for folder in folders:
        synthetic_trace(n_classes=3, epochs=1).save(folder / "trace")
    traces = [Trace.load(folders[0]), Trace.load(folders[1] / "trace"), Trace.load(folders[2])]
    assert figures.trace_labels(traces) == [f"microCLIP, {x}" for x in ("a/run", "b/run", f"{tmp_path.name}/c")]
    assert len(set(figures.trace_labels([traces[0], traces[0]]))) == 2


def test_figure_report_and_explorer_say_the_same():
    traces = [synthetic_trace(n_classes=4, epochs=2, seed=3) for _ in range(2)]
    traces[1].meta["settings"]["method"]["gamma"] = 0.3
    labels = ["microCLIP, gamma 0.7", "microCLIP, gamma 0.3"]
    assert [series.label for series in figures.accuracy_over_epochs_info(traces).series] == labels
    assert [row.label for row in summarize(traces).rows] == labels
    explorer = SaliencyExplorer(traces)
    assert list(explorer.method.options) == labels
    assert explorer.inspector.rows[0].title.startswith(labels[0])
