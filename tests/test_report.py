"""The report: what it says, what it never does, and how much it weighs."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from synthetic import empty_trace, explorable, synthetic_comparison, synthetic_trace

from clipviz.figures import accuracy_over_epochs, confusion_info, image_table
from clipviz.report import write_report
from clipviz.report.summary import is_about_chance, summarize
from clipviz.report.views import CHAPTERS, VIEWS
from clipviz.trace import Trace
from tools.docs_gallery import main as gallery

SMALL = {"n_classes": 6, "n_images": 60, "n_eval": 40, "n_probe": 3}
HOSTILE = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "a\"b'c", "x" * 1000, "$x^2$", "a\nb"]


class Page(HTMLParser):
    """Tags, ids, addresses and shown text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.addresses, self.handlers, self.shown = [], [], [], [], []
        self.rows, self.attributes = [], []
        self._hidden = 0
        self.feed(text)
        self.text = " ".join(" ".join(self.shown).split())
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        self._hidden += tag in ("script", "style")
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "srcset", "action", "data"):
                self.addresses.append(value)
            if name.startswith("on"):
                self.handlers.append((tag, name))

    def handle_endtag(self, tag):
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data):
        if not self._hidden:
            self.shown.append(data)
            if self.rows and self.rows[-1]:
                self.rows[-1][-1] += data


def write(tmp_path, traces, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return write_report(traces, tmp_path / "report.html", **options).read_text(encoding="utf-8")


@pytest.fixture
def one_chapter(monkeypatch):
    """For tests of what stands above the charts or is explored: most of a report's time is theirs."""
    monkeypatch.setattr("clipviz.report.sections.CHAPTERS", {"Training": CHAPTERS["Training"]})


def packed(report, name):
    """What a packed block holds."""
    (text,) = re.findall(rf'<script type="text/plain" id="packed-{name}"[^>]*>([^<]*)</script>', report)
    return json.loads(gzip.decompress(base64.b64decode(text))) if text else None


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write(tmp_path_factory.mktemp("report"), synthetic_comparison(epochs=2, **SMALL))


def test_it_is_one_file_that_asks_for_nothing(report):
    page = Page(report)
    assert all(address.startswith(("#", "data:image/jpeg;base64,")) for address in page.addresses)
    assert page.tags.count("img") >= 3
    assert not {"iframe", "object", "embed", "link", "base"} & set(page.tags)
    assert report.count("plotly.js v") == 1, "plotly.js is inlined once"
    assert "default-src 'none'" in report
    assert not re.search(
        "localStorage|sessionStorage|indexedDB|document.cookie|fetch\\(|XMLHttpRequest", own_script(report)
    )
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)


def own_script(report):
    return re.search(r'<script type="module">(.*?)</script>', report, re.DOTALL).group(1)


def test_only_the_scripts_whose_hashes_the_policy_holds_may_run(report):
    policy = next(
        a["content"] for tag, a in Page(report).attributes if a.get("http-equiv") == "Content-Security-Policy"
    )
    scripts = re.search(r"script-src ([^;]*);", policy).group(1).split()
    plotly = gzip.decompress(base64.b64decode(re.search(r'id="packed-plotly"[^>]*>([^<]*)<', report).group(1)))
    hashes = [hashlib.sha256(source).digest() for source in (own_script(report).encode(), plotly)]
    assert scripts == [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes]
    assert "base-uri 'none'; form-action 'none'" in policy
    assert report.count("<script") == 4, "three packed blocks and one module"


def test_every_image_and_chart_is_described(report):
    assert all(re.search(r'alt="[^"]{20,}"', image) for image in re.findall(r"<img [^>]*>", report))
    drawn = [a for _, a in Page(report).attributes if a.get("class") == "chart"]
    assert {a["id"] for a in drawn} == set(packed(report, "charts"))
    assert len(drawn) > 30
    assert all(a["role"] == "group" and len(a["aria-label"]) > 20 for a in drawn)


def test_tables_have_headers_and_sections_names(report):
    page = Page(report)
    assert all(a.get("scope") for tag, a in page.attributes if tag == "th")
    sections = [a["aria-labelledby"] for tag, a in page.attributes if tag == "section"]
    assert set(sections) <= set(page.ids)
    links = {a["href"][1:] for tag, a in page.attributes if tag == "a"}
    assert links >= {"results", "explore", "settings", "confidence_evolution", "confusion"}


def test_figures_of_all_runs_stand_side_by_side_under_one_heading(report):
    page = Page(report)
    assert page.text.count(" Confidence of the pseudo-labels Confidence of the pseudo-labels and,") == 1
    runs = [a["id"] for _, a in page.attributes if a.get("id", "").startswith("confidence_evolution-")]
    assert runs == ["confidence_evolution-title", *(f"confidence_evolution-{run}" for run in (2, 3, 4))]


def test_the_title_names_every_method_but_the_baselines_that_gains_are_measured_against(tmp_path):
    traces = [Trace(meta={"method": name, "data": "x"}) for name in ("zero_shot", "descriptions", "wca", "tip_adapter")]
    assert "<h1>WCA, Tip-Adapter on x</h1>" in write(tmp_path, traces)
    assert "<h1>zero-shot, descriptions on x</h1>" in write(tmp_path, traces[:2])


def test_lines_of_methods_that_do_not_change_are_spoken_of_where_there_are_some(tmp_path, report):
    assert "Horizontal lines are" in report
    assert "Horizontal lines are" not in write(tmp_path, [synthetic_trace(epochs=2, **SMALL)])


def test_no_text_finds_a_panel_by_its_place_which_is_another_on_a_phone(report):
    assert not re.findall(r"(?i)\b(?:left|right|above|below): |\b(?:upper|lower) row", Page(report).text)


def test_the_summary_says_at_once_who_is_best_by_how_much_and_what_is_chance(report):
    best = max(summarize(synthetic_comparison(epochs=2, **SMALL)).rows, key=lambda row: row.accuracy)
    text = Page(report).text
    assert f"{best.label} is right most often: {100 * best.accuracy:.1f} % of 40 images, {100 * best.gain:+.1f}" in text
    assert "Differences below 15.8 points may be chance" in text


@pytest.mark.usefixtures("one_chapter")
def test_methods_that_are_right_equally_often_are_all_the_best(tmp_path):
    traces = synthetic_comparison(epochs=2, **SMALL)
    traces[1].epochs, traces[1].predictions = traces[3].epochs, traces[3].predictions
    page = Page(write_report(traces, tmp_path / "tie.html").read_text(encoding="utf-8"))
    rows = summarize(traces).rows
    best = [row for row in rows if row.accuracy == max(each.accuracy for each in rows)]
    assert f"{', '.join(row.label for row in best)} are right equally often: " in page.text
    assert sum(a.get("class") == "best" for tag, a in page.attributes if tag == "tr") == len(best) == 2


def test_a_report_does_not_call_label_free_what_chose_images_by_their_labels(tmp_path):
    trace = synthetic_trace(epochs=2, **SMALL)
    page = Page(write_report([trace], tmp_path / "free.html").read_text(encoding="utf-8"))
    assert "but no label: they learn" in page.text
    trace.meta["settings"] = {"method": {"selection": "oracle_balanced"}}
    page = Page(write_report([trace], tmp_path / "oracle.html").read_text(encoding="utf-8"))
    assert "no label:" not in page.text
    assert "without their labels" not in page.text
    assert "picks the images of its cache by their true classes, so its results are not label-free" in page.text


@pytest.mark.usefixtures("one_chapter")
def test_only_another_split_of_the_data_is_called_unseen(tmp_path):
    trace = synthetic_trace(epochs=2, **SMALL)
    trace.meta |= {"accuracy_is": "test", "split": "train", "eval_split": "test"}
    page = Page(write_report([trace], tmp_path / "split.html").read_text(encoding="utf-8"))
    assert "the true one: images that no method has seen. It" in page.text
    trace.meta |= {"split": "all", "eval_split": "all", "eval_data": "elsewhere"}  # perhaps some of the same images
    page = Page(write_report([trace], tmp_path / "all.html").read_text(encoding="utf-8"))
    assert "images that no method has seen if they are not among those adapted to. It" in page.text


def test_what_can_be_explored_is_what_the_traces_say(report):
    traces = synthetic_comparison(epochs=2, **SMALL)
    content = packed(report, "images")
    index = unpacked(content["index"])
    assert set(index) == {number for trace in traces for number in trace.highlights.index}
    for trace, found in zip(traces, content["runs"], strict=True):
        last = trace.predictions[trace.predictions["epoch"] == trace.predictions["epoch"].max()].set_index("index")
        assert unpacked(found["prediction"]).reshape(-1, len(index))[-1].tolist() == last["prediction"][index].tolist()
        assert found["epochs"] == sorted(trace.predictions["epoch"].unique())
        said = unpacked(found["confidence"]).reshape(-1, len(index))[-1]
        assert [f"{byte / 100:.2f}" for byte in said] == [f"{share:.2f}" for share in last["confidence"][index]]
        counts = np.zeros(36, int)
        counts[unpacked(found["cells"])] = unpacked(found["counts"])
        assert (counts.reshape(6, 6) == confusion_info(trace).counts).all()
        for part in found["parts"]:
            assert (index[unpacked(part["places"])] == trace.highlights.index).all()
            top = unpacked(part["top"]).reshape(-1, part["nTop"])
            assert (top[:, 0] == trace.highlights.probs.argmax(1)).all()
            for name, logits in part["logits"].items():
                probs = np.take_along_axis(trace.highlights.branches[name], top.astype(int), 1)
                np.testing.assert_allclose(unpacked(logits).reshape(top.shape), np.log(probs), rtol=1e-3, atol=1e-3)
            maps = {one["kind"]: unpacked(one["values"]) for one in part["maps"]}
            assert maps.keys() == {"SOAP attention", "NCut mask"}
            assert (
                maps["NCut mask"].reshape(trace.highlights.maps["ncut"].shape) == 255 * trace.highlights.maps["ncut"]
            ).all()


@pytest.mark.usefixtures("one_chapter")
@pytest.mark.parametrize(("n", "said"), [(40, ""), (25, ", of the 25 images of this page")])
def test_a_table_of_some_of_the_images_says_so(n, said, tmp_path):
    traces = [explorable(synthetic_trace(epochs=1, method=name, **SMALL), n) for name in ("dpa", "ntua")]
    for trace in traces:  # the most instructive images are among these
        trace.arrays = {name: a for name, a in trace.arrays.items() if not name.startswith(("gallery/", "cache/"))}
    report = write(tmp_path, traces)
    assert f"<summary><span>Right where another is wrong</span>{said}</summary>" in report


@pytest.mark.usefixtures("one_chapter")
def test_who_decided_images_that_were_learned_from(tmp_path):
    trace = synthetic_trace(epochs=2, **SMALL)
    trace.meta["accuracy_is"] = "transductive"
    one = trace.samples["index"] == trace.highlights.index[0]
    trace.samples.loc[one, "dynamic_label"] = trace.samples.loc[one, "pseudo_label"]
    trace.samples.loc[one, "static_label"] = (trace.samples.loc[one, "pseudo_label"] + 1) % 6
    content = packed(write_report([trace], tmp_path / "report.html").read_text(encoding="utf-8"), "images")
    index, (found,) = unpacked(content["index"]), content["runs"]
    by_epoch = unpacked(found["decided"]).reshape(-1, len(index))
    names = {i: name.removeprefix("only ") for i, name in enumerate(found["deciders"])}
    for epoch, codes in zip(found["epochs"], by_epoch, strict=True):
        who = image_table(trace, "eval", epoch)["decider"][index].tolist()
        assert [names.get(code, "") for code in codes.tolist()] == who
    assert {"all agree", "dynamic"} <= set(who)


def unpacked(text):
    kind, data = text.split(":")
    return np.frombuffer(base64.b64decode(data), f"<{kind}")


def test_the_table_holds_every_method_beside_zero_shot(report):
    rows = Page(report).rows
    traces = synthetic_comparison(epochs=2, **SMALL)
    for trace, name in zip(traces, ("zero-shot", "descriptions", "NtUA", "DPA", "microCLIP"), strict=True):
        (row,) = [row for row in rows if row[:1] == [name]]
        first, *_, last = (f"{100 * accuracy:.1f} %" for accuracy in trace.metric("accuracy"))
        assert row[1:3] == [last, first], "a gain over a baseline says nothing of what training did"
    assert "gain over descriptions" in report


def test_every_view_of_a_trained_run_is_there(report):
    page = Page(report)
    for view in VIEWS:
        assert html.unescape(view.title) in page.text
    assert {"microCLIP", "DPA", "NtUA"} <= {text.strip() for text in page.shown}


def test_it_says_what_birds_are_and_how_to_repeat_the_run(report):
    text = Page(report).text
    assert "not a claim about photographs" in text
    assert "clipviz adapt microclip --model birds --data birds/clutter --out runs/microclip" in text
    assert "2.13.0" in text
    rows = Page(report).rows
    assert ["gamma", "null", "null", "null", "null", "0.7"] in rows
    assert ["tau", "0.2"] in rows, "what all runs share is said once"
    names = [row[0] for row in rows]
    (fold,) = [name for name in names if name.endswith("settings are the same in all runs")]
    assert names.index("gamma") < names.index(fold) < names.index("tau")
    assert "standard error" in text
    assert "guessing" not in text, "these runs are far above chance"


def test_photographs_are_no_birds_and_all_images_no_split(tmp_path):
    traces = synthetic_comparison(epochs=1, **SMALL)[:1]
    traces[0].meta.update(model="birds", data="photos", split="all")
    text = Page(write(tmp_path, traces)).text
    assert "trained on rendered birds only" in text
    assert "The birds are rendered" not in text
    assert " images of photos in " in text
    traces[0].meta.update(model="ViT-B-32", split="train")
    text = Page(write(tmp_path, traces)).text
    assert "rendered birds" not in text
    assert " images of photos (train split) in " in text


@pytest.mark.usefixtures("one_chapter")
def test_chance_is_called_chance(tmp_path):
    traces = synthetic_comparison(epochs=1, **{**SMALL, "n_classes": 24})[::4]
    for trace in traces:
        last = trace.epochs["metric"] == "accuracy"
        trace.epochs.loc[last, "value"] = 0.05
    text = Page(write(tmp_path, traces)).text
    assert "guessing among 24 classes gives 4.2 %" in text
    assert "No better than chance (4.2 %) after the last epoch: zero-shot, microCLIP." in text


@pytest.mark.parametrize(
    ("accuracy", "n_classes", "n_images", "chance"),
    [(0.25, 4, 100, True), (0.33, 4, 100, True), (0.35, 4, 100, False), (0.35, 4, 10, True), (1.0, 1, 9, False)],
)
def test_about_chance_is_within_two_standard_errors(accuracy, n_classes, n_images, chance):
    assert is_about_chance(accuracy, n_classes, n_images) is chance


def test_without_labels_accuracy_says_so_and_the_other_views_stay(tmp_path):
    report = write(tmp_path, synthetic_comparison(epochs=2, labelled=False, **SMALL)[::4])
    text = Page(report).text
    assert "no labels" in text
    assert "accuracy cannot be measured" in text
    shown = {view.figure for view in VIEWS if view.title in text}
    assert shown >= {"confidence_evolution", "source_decisions", "label_flips", "label_flow", "prototype_paths",
                     "saliency_grid", "loss_terms"}  # fmt: skip
    assert not shown & {"reliability", "confusion", "per_class_accuracy"}
    assert "confusion matrix" not in text
    assert "second panel, if there is one" in text
    assert not [tag for tag, a in Page(report).attributes if tag == "tr" and a.get("class") == "best"]
    assert set(unpacked(packed(report, "images")["target"]).tolist()) == {-1}


def test_a_run_without_evaluation_images_says_so_and_its_chart_has_numbers(tmp_path):
    trace = synthetic_trace(epochs=2, **SMALL)
    trace.epochs = trace.epochs[trace.epochs["metric"] == "pseudo_label_accuracy"]
    trace.predictions = trace.predictions[:0]
    text = Page(write(tmp_path, trace)).text
    assert "There were no evaluation images, so accuracy was not measured" in text
    assert "microCLIP not measured" in text
    assert "no labels" not in text
    assert "on the evaluation images" not in text
    assert "the pseudo-labels that each method learned from" in text
    layout = accuracy_over_epochs(trace).layout
    assert (layout.yaxis2.showticklabels, layout.yaxis2.title.text) == (True, "accuracy (%)")
    assert accuracy_over_epochs(synthetic_trace(epochs=2, **SMALL)).layout.yaxis2.showticklabels is False


def test_a_report_of_the_name_of_a_folder_is_refused(tmp_path):
    for given, said in (("runs/photos", "'runs/photos'"), (["runs/photos"], "'runs/photos'"), (print, "<built-in .*>")):
        with pytest.raises(ValueError, match=f"a report needs traces, got {said}; Trace.load"):
            write_report(given, tmp_path / "report.html")


@pytest.mark.usefixtures("one_chapter")
def test_a_single_run_is_compared_with_the_model_before_adaptation(tmp_path):
    trace = synthetic_trace(epochs=2, **SMALL)
    trace.meta["zero_shot_accuracy"] = 0.125
    summary = summarize([trace])
    assert [row.label for row in summary.rows] == ["zero-shot", "microCLIP"]
    assert summary.reference == "zero-shot"
    assert summary.rows[1].gain == pytest.approx(trace.metric("accuracy").iloc[-1] - 0.125)
    page = write(tmp_path, [trace])
    assert "12.5 %" in page
    assert write(tmp_path, trace) == page


@pytest.mark.usefixtures("one_chapter")
def test_no_model_is_compared_with_another_ones_zero_shot(tmp_path):
    small, large, other = (synthetic_trace(epochs=1, method=method, **SMALL) for method in ("dpa", "ntua", "zero_shot"))
    small.meta |= {"zero_shot_accuracy": 0.25, "classes_from": "names"}
    large.meta |= {"zero_shot_accuracy": 0.625, "model": "ViT-B-16", "n_images": 1200, "classes_from": "descriptions"}
    for runs in ([small, large], [small, large, other]):
        summary = summarize(runs)
        assert summary.reference is None
        assert len(summary.rows) == len(runs)
        assert [row.gain for row in summary.rows] == [row.accuracy - row.before for row in summary.rows]
    text = Page(write(tmp_path, [small, large])).text
    assert "The models birds and ViT-B-16 were adapted to 60 or 1,200 images of birds/clutter" in text
    assert "The methods saw the images and the names and descriptions of the classes" in text
    large.meta |= {"zero_shot_accuracy": 0.25, "model": "birds"}
    assert summarize([small, large]).reference == "zero-shot"


def test_a_baseline_alone_adapted_nothing(tmp_path):
    one, two = ({**SMALL, "n_classes": n} for n in (1, 2))
    baseline, trained = synthetic_trace(epochs=0, method="zero_shot", **one), synthetic_trace(epochs=1, **two)
    text = Page(write(tmp_path, baseline)).text
    assert "Nothing was adapted" in text
    assert "adapted to" not in text.split("Settings")[0]
    assert "in 1 class. The" in text
    text = Page(write(tmp_path, trained)).text
    assert "Nothing was adapted" not in text
    assert "in 2 classes. The" in text


def test_summary_counts_by_hand():
    samples = pd.DataFrame(
        {"epoch": [0, 0, 1, 1], "index": [0, 1, 0, 1], "pseudo_label": [0, 0, 0, 1],
         "confidence": [0.5, 0.5, 0.5, 1.0], "margin": 0.0, "weight": 1.0, "target": -1}
    )  # fmt: skip
    (row,) = summarize([Trace(samples=samples, meta={"method": "dpa", "seconds": 3})]).rows
    assert (row.accuracy, row.gain, row.confidence, row.changed, row.seconds) == (None, None, 0.75, 0.5, 3.0)
    (row,) = summarize([Trace(samples=samples, meta={"method": "tda", "labels_are": "online"})]).rows
    assert row.confidence == 0.625, "epochs of a stream are slices of it"


@pytest.mark.usefixtures("one_chapter")
def test_accuracy_is_said_of_the_images_that_have_a_label(tmp_path):
    trace = synthetic_trace(epochs=2, **SMALL)
    known = trace.predictions["index"] < 10
    trace.predictions.loc[~known, "target"] = -1
    assert summarize([trace]).standard_error == pytest.approx(0.5 / np.sqrt(10))
    text = Page(write(tmp_path, trace)).text
    accuracy = 100 * trace.metric("accuracy").iloc[-1]
    assert f"microCLIP is right on {accuracy:.1f} % of 10 labeled images. Differences below 31.6 points" in text
    assert "Accuracy is the share of 10 labeled images" in text
    assert f"{trace.highlights.index.size} of 40 evaluation images" in text
    trace.predictions.loc[trace.predictions["index"] > 0, "target"] = -1
    text = Page(write(tmp_path, trace)).text
    assert " % of 1 labeled image. " in text
    assert "Accuracy is the share of 1 labeled image of" in text


def test_hostile_names_are_letters_everywhere(tmp_path):
    traces = synthetic_comparison(epochs=2, n_images=60, n_eval=40, n_probe=3, class_names=HOSTILE)[::4]
    for trace in traces:
        trace.meta["data"] = trace.meta["eval_data"] = "<script>alert(3)</script>"
        trace.meta["command"] = "clipviz adapt --data '<img src=y onerror=alert(4)>'"
        trace.skipped = pd.DataFrame(
            {"path": ["<svg onload=alert(5)>.png\udcff"], "reason": ["</td><script>"]}, dtype=object
        )
    report = write(tmp_path, traces)
    page = Page(report)
    assert page.handlers == []
    assert "svg" not in page.tags
    assert len(re.findall(r"<img (?!src=\"data:)", report)) == 0
    assert page.tags.count("script") == report.count("<script") == report.count("</script>") == 4
    assert "<svg onload=alert(5)>.png\\udcff" in page.text
    assert HOSTILE[0] not in report


def test_braces_quotes_and_ampersands_are_escaped_once(tmp_path):
    trace = synthetic_trace(epochs=0, method="zero_shot", **SMALL)
    trace.meta["data"] = "<&\"'>{{7*7}}{% raw %}\u202e"
    report = write(tmp_path, [trace])
    assert "&lt;&amp;&#34;&#39;&gt;{{7*7}}{% raw %}\\u202e" in report
    assert "<&\"'>{{7*7}}{% raw %}\\u202e" in Page(report).text


def test_six_megabytes_for_the_methods_of_a_demo(tmp_path):
    methods = ["zero_shot", "descriptions", "wca", "transclip", "stata", "tda", "oga", "ntua", "dpa", "microclip"]
    traces = [
        synthetic_trace(epochs=0 if i < 3 else 6, method=name, n_images=600, n_eval=480, n_probe=12)
        for i, name in enumerate(methods)
    ]
    for trace in traces:
        explorable(trace, 480)
    assert len(write(tmp_path, traces).encode()) <= 6_000_000


def test_ten_runs_of_many_images_and_kinds_of_maps_weigh_fifteen_and_say_what_they_left_out(tmp_path):
    traces = [synthetic_trace(epochs=3, seed=i, n_images=600, n_eval=480, n_probe=12) for i in range(10)]
    for trace in traces:
        explorable(trace, 480, grid=24, kinds=("soap", "ncut", "cls_attention"))
    report = write(tmp_path, traces)
    assert len(report.encode()) <= 15_000_000
    assert {one["kind"] for run in packed(report, "images")["runs"] for p in run["parts"] for one in p["maps"]} == {
        "SOAP attention"
    }
    assert "holds only one kind of map" in Page(report).text


def test_runs_that_cannot_share_a_table_are_refused(tmp_path):
    one, other = (synthetic_trace(epochs=1, **SMALL) for _ in range(2))
    other.meta["data"] = "birds/night"
    for traces, complaint in [
        ([], "at least one trace"),
        ([one, other], "cannot share a table.*birds/clutter.*birds/night"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            write_report(traces, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("one_chapter")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: run.meta.update(files={"measured": [f"{run.method}/{i}.png" for i in range(40)]}), "files"),
        (lambda run: run.meta.update(origins={"eval_data": {"spec": "birds", "seed": len(run.method)}}), "seed"),
        (lambda run: run.predictions.update({"target": run.predictions["index"] % len(run.method) % 6}), "true class"),
    ],
    ids=["files", "drawn", "labels"],
)
def test_runs_on_other_images_of_the_same_name_are_refused(change, said, tmp_path):
    traces = [synthetic_trace(epochs=1, method=method, **SMALL) for method in ("microclip", "dpa")]
    write(tmp_path, traces)
    for trace in traces:
        change(trace)
    with pytest.raises(ValueError, match=f"cannot share a table.*same name, but differ in their {said}"):
        write_report(traces, tmp_path / "report.html")


def test_a_place_that_cannot_be_written_is_refused_and_keeps_what_is_there(tmp_path, monkeypatch):
    trace = synthetic_trace(epochs=0, method="zero_shot", **SMALL)
    with pytest.raises(ValueError, match=r"is a folder; try .*report\.html"):
        write_report([trace], tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"cannot write .*/file/report\.html: File exists; choose another place"):
        write_report([trace], tmp_path / "file" / "report.html")
    older = tmp_path / "report.html"
    older.write_text("older")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ValueError, match="No space left on device; make room, or choose another place"):
        write_report([trace], older)
    assert older.read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "report.html"]


def test_a_folder_in_the_place_of_its_trace_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"needs traces, got 'runs/dpa'; Trace\.load reads that of a run folder"):
        write_report(["runs/dpa"], tmp_path / "r.html")


def test_an_empty_trace_still_gives_a_page(tmp_path):
    assert "unnamed images" in Page(write(tmp_path, [empty_trace()])).text


def test_gallery_refuses_what_is_no_run_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        gallery([str(tmp_path), "--out", str(tmp_path / "out")])
    assert capsys.readouterr().err.count("\n") == 1
