"""Whatever a trace of others holds: every figure and the report are drawn from it, or one line says what is wrong."""

import io
import os
import warnings
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mutants import complete_trace, mutants, signed

from clipviz import figures
from clipviz.report import write_report
from clipviz.trace import Trace

OF_TWO = {"comparison_info", "timeline_info"}  # of two runs, and of one image of a run
INFOS = [getattr(figures, name) for name in figures.__all__ if name.endswith("_info") and name not in OF_TWO]
PROBE_MAPS = ("fiedler", "ncut", "soap")
ONE_IN = int(os.environ.get("CLIPVIZ_MUTANTS", "15"))
"""Which share of the mutants is tried: all of them with 1, in a few minutes."""
DRAWN_ONE_IN = 300
"""Of them a report is drawn where they open; the numbers of every figure are made of all that open."""


def is_chosen(fault, one_in):
    return zlib.crc32(fault.encode()) % one_in == 0


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a complete trace, and the bytes of its files."""
    folder = complete_trace().save(tmp_path_factory.mktemp("foreign") / "trace")
    return folder, {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def load(saved, changed):
    folder, files = saved
    for name, content in {**files, **changed, "manifest.json": signed({**files, **changed})}.items():
        (folder / name).write_bytes(content)
    return Trace.load(folder)


def outcome(saved, mutant, report):
    """None where a mutant is refused by one line that names the file, or all of it is drawn; else what came instead."""
    try:
        trace = load(saved, {mutant.file: mutant.content})
    except ValueError as error:
        line = str(error)
        is_clear = line.isprintable() and (mutant.file in line or "class_names" in line)
        return None if is_clear else f"{mutant.fault}: refused by {line!r}"
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            for info in INFOS:
                info(trace)
            if len(trace.samples) or len(trace.predictions):
                compared = figures.comparison_info(trace, trace)
                figures.timeline_info(trace, f"{compared.split}/{compared.table.index[0]}")
            if is_chosen(mutant.fault, DRAWN_ONE_IN):
                write_report([trace], report)
    except Exception as error:
        return f"{mutant.fault}: opens, then {type(error).__name__}: {error}"
    return None


@pytest.fixture(scope="module")
def faults():
    return list(mutants(complete_trace()))


def test_what_others_put_into_a_trace_is_drawn_or_refused_in_one_line(saved, faults, tmp_path):
    chosen = [mutant for mutant in faults if is_chosen(mutant.fault, ONE_IN)]
    wrong = [what for mutant in chosen if (what := outcome(saved, mutant, tmp_path / "report.html"))]
    assert wrong == []
    assert len({mutant.file for mutant in chosen}) == 7, "every file has its faults"


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("samples: target the number of classes", "samples.parquet: column 'target' needs classes, or -1, of the 3"),
        ("samples: index -1", "samples.parquet: column 'index' needs positions from 0 to 2147483648, got -1"),
        ("predictions: epoch text", "predictions.parquet: column 'epoch' needs epochs, got (str|object)"),
        ("predictions: confidence inf", "column 'confidence' needs shares from 0 to 1, got inf"),
        ("samples: dynamic_confidence missing", r"samples.parquet: lacks the columns \['dynamic_confidence'\]"),
        ("steps: twice", "steps.parquet: has two rows whose epoch, step, term are 0, 0, "),
        ("epochs: twice", "epochs.parquet: has two rows whose epoch, metric are .*, .*accuracy; only one can be true"),
        ("predictions: twice", "predictions.parquet: has two rows whose epoch, index are -1, 0; only one can be true"),
        ("skipped: path twice", "skipped.parquet: has two columns with the same name"),
        ("probe/soap one less at the end", None),
        ("probe/index one less", r"array 'probe/index' needs the shape \(2\), got \(1,\)"),
        ("gallery/probs NaN", None),
        ("gallery/images missing", "arrays.safetensors: holds 'gallery/.*', but lacks 'gallery/images'"),
        ("sources lists", r"meta.json: sources must be a list of strings, got \[\[1, 2\], \[\]\]"),
        ("gallery_sentences strange rows", r"must be a list of \[position, class, sentence, cosine\]"),
        ("deep", "meta.json .* nested too deeply"),
    ],
)
def test_the_line_says_which_table_and_what_is_wrong(saved, faults, fault, complaint):
    (mutant,) = (mutant for mutant in faults if mutant.fault == fault)
    if complaint is None:
        load(saved, {mutant.file: mutant.content})
        return
    with pytest.raises(ValueError, match=complaint):
        load(saved, {mutant.file: mutant.content})


def test_a_trace_is_read_by_groups(saved):
    trace = load(saved, {})
    probe, highlights, sources = trace.probe, trace.highlights, trace.sources
    assert probe.images.shape == (2, 8, 8, 3)
    assert {kind: maps.shape for kind, maps in probe.maps.items()} == dict.fromkeys(PROBE_MAPS, (3, 2, 8, 8))
    assert (probe.probs, probe.branches) == (None, {})
    assert highlights.probs.shape == (2, 3)
    assert set(highlights.branches) == {"cls", "fg"}
    assert set(highlights.maps) == {*PROBE_MAPS, "cls_attention"}
    assert list(sources.logits) == ["static", "dynamic"]
    assert sources.crop_gram.shape == (8, 4, 4)
    assert trace.cache.contributions.shape == (2, 2)
    assert trace.examples.label.tolist() == [0, 1, 2]
    assert trace.embeddings.images.shape == (3, 4, 32)
    assert set(trace.snapshots) == {"learned_classifier", "static_classifier"}


def test_a_trace_without_arrays_has_empty_groups():
    trace = Trace()
    assert len(trace.probe.images) == len(trace.highlights.images) == len(trace.sources.index) == 0
    assert trace.cache is trace.examples is trace.embeddings is None
    assert trace.snapshots == trace.probe.maps == trace.sources.logits == {}


def test_types_that_mean_the_same_are_made_the_same(saved):
    trace = complete_trace()
    _, files = saved
    small = {f"{name}.parquet": _narrow(files[f"{name}.parquet"]) for name in ("samples", "predictions")}
    loaded = load(saved, small)
    assert (loaded.samples.dtypes == trace.samples.dtypes).all()
    assert loaded.samples["pseudo_label"].tolist() == trace.samples["pseudo_label"].tolist()


def _narrow(content):
    table = pq.read_table(io.BytesIO(content))
    narrow = {pa.int64(): pa.int32(), pa.float32(): pa.float16()}
    buffer = io.BytesIO()
    pq.write_table(table.cast(pa.schema([(f.name, narrow.get(f.type, f.type)) for f in table.schema])), buffer)
    return buffer.getvalue()
