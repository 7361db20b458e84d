"""A figure as a file: every figure in every format, with its fonts, its text as text, whole or not at all."""

from __future__ import annotations

import base64
import io
import re
from xml.etree import ElementTree

import plotly.graph_objects as go
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.t2CharStringPen import T2CharStringPen
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont
from matplotlib.font_manager import FontEntry, fontManager
from matplotlib.text import Text
from PIL import Image
from synthetic import synthetic_trace

import clipviz
from clipviz import figures
from clipviz.figures.fonts import lettered
from clipviz.figures.redraw import redraw
from clipviz.figures.style import LOOKS
from clipviz.widgets import SaliencyExplorer

NAMES = [name for name in figures.__all__ if f"{name}_info" in figures.__all__]
CLASSES = ["<script>alert(1)</script>", "a & b \"q\" 'r'", "$\\frac{1}{2}$", "]]>", "été"]


@pytest.fixture(scope="module")
def trace():
    return synthetic_trace(class_names=CLASSES, epochs=3, n_images=60, n_eval=40, n_probe=2, skill=0.5)


def texts_of(svg):
    """What is written in an SVG, and the fonts in it by family and weight; it is well-formed and runs nothing."""
    root = ElementTree.fromstring(svg)
    names = {element.tag.split("}")[1] for element in root.iter()}
    assert not names & {"script", "foreignObject"}
    style = "".join(element.text or "" for element in root.iter() if element.tag.endswith("}style"))
    faces = re.findall(r"font-family:'([^']+)';font-weight:(\w+);[^}]*base64,([^)]+)\)", style)
    written = [element for element in root.iter() if element.tag.endswith("}text")]
    return written, {(family, weight): TTFont(io.BytesIO(base64.b64decode(data))) for family, weight, data in faces}


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_saved_in_every_format(name, trace, tmp_path, monkeypatch):
    figure = drawn = getattr(figures, name)(trace)

    def keep(chart):
        nonlocal drawn
        drawn = redraw(chart)
        return drawn

    monkeypatch.setattr("clipviz.figures.static.redraw", keep)
    for suffix in ("pdf", "svg", "png"):
        clipviz.save(figure, tmp_path / f"a.{suffix}", dpi=100)
    fonts = re.findall(rb"/Subtype /(Type0|Type3|CIDFontType2|TrueType|Type1)\b", (tmp_path / "a.pdf").read_bytes())
    assert fonts
    assert not {b"Type1", b"Type3"} & set(fonts), "letters as bitmaps or programs, or not in the file"
    assert (tmp_path / "a.pdf").read_bytes().count(b"/FontFile2") >= 1
    assert Image.open(tmp_path / "a.png").size == tuple(round(100 * inches) for inches in drawn.get_size_inches())
    written, faces = texts_of((tmp_path / "a.svg").read_text("utf-8"))
    lines = {line.strip() for text in drawn.findobj(Text) for line in text.get_text().split("\n")} - {""}
    shown = {(element.text or "").strip() for element in written}
    assert shown - {""} <= lines
    assert len(shown) > 3
    for element in written:
        weight = "700" if "font-weight: 700" in element.attrib["style"] else "400"
        assert set(map(ord, (element.text or "").strip())) <= set(faces["DejaVu Sans", weight].getBestCmap())


def test_names_are_the_same_letters_in_an_svg(trace, tmp_path):
    written, _ = texts_of(clipviz.save(figures.per_class_accuracy(trace), tmp_path / "a.svg").read_text("utf-8"))
    assert set(CLASSES) <= {element.text for element in written}


def install_font(monkeypatch, folder, family, letters, is_truetype):
    """A font whose letters are squares, as wide as high, for this test alone, and listed for whoever lacks letters."""
    builder, names = FontBuilder(1000, isTTF=is_truetype), {ord(letter): f"u{ord(letter)}" for letter in letters}
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    shapes = {}
    for name in (".notdef", *names.values()):
        pen = TTGlyphPen(None) if is_truetype else T2CharStringPen(1000, None)
        pen.moveTo((100, 0))
        for point in ((100, 800), (900, 800), (900, 0)):
            pen.lineTo(point)
        pen.closePath()
        shapes[name] = pen.glyph() if is_truetype else pen.getCharString()
    if is_truetype:
        builder.setupGlyf(shapes)
    else:
        builder.setupCFF(family, {}, shapes, {})
    builder.setupHorizontalMetrics(dict.fromkeys(shapes, (1000, 100)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": family, "styleName": "Regular", "psName": family})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path := folder / f"{family}.otf")
    monkeypatch.setattr(fontManager, "ttflist", [*fontManager.ttflist, FontEntry(fname=str(path), name=family)])
    monkeypatch.setitem(LOOKS["fonts"], "any", [family])


@pytest.mark.parametrize("is_truetype", [True, False])
def test_letters_that_the_font_lacks_come_from_one_that_is_installed(is_truetype, tmp_path, monkeypatch):
    family = f"Squares{is_truetype}"
    install_font(monkeypatch, tmp_path, family, "喜鹊", is_truetype)
    trace = synthetic_trace(class_names=["喜鹊", "finch"], epochs=1, n_images=8, n_eval=8, n_probe=1)
    drawn = redraw(figures.confusion(trace))
    families = {text.get_text(): text.get_fontfamily() for text in drawn.findobj(Text)}
    assert families["喜鹊"] == [*families["finch"], family], "of all texts this one alone lacks letters"
    with lettered(drawn):
        assert {text.get_text(): text.get_fontfamily() for text in drawn.findobj(Text)} == families
    (name,) = (text for text in drawn.axes[0].get_yticklabels() if text.get_text() == "喜鹊")
    assert name.get_window_extent().width == pytest.approx(2 * name.get_fontsize() / 72 * 100, abs=4), "two squares"
    pdf, svg = (clipviz.save(figures.confusion(trace), tmp_path / f"a.{kind}").read_bytes() for kind in ("pdf", "svg"))
    assert re.search(rb"/BaseFont /\w+\+%b\b" % family.encode(), pdf)
    is_type_3 = b"/Subtype /Type3" in pdf  # few readers show PostScript outlines that are called TrueType
    assert is_type_3 != is_truetype
    assert (b"/FontFile2" in pdf) == is_truetype
    written, faces = texts_of(svg.decode())
    assert set(faces[family, "400"].getBestCmap()) == set(map(ord, "喜鹊"))
    assert not set(map(ord, "喜鹊")) & set(faces["DejaVu Sans", "400"].getBestCmap())
    assert family in next(element.attrib["style"] for element in written if element.text == "喜鹊")


def test_arabic_is_joined_in_an_svg_and_stands_in_its_place_beside_numbers_and_arrows(tmp_path):
    trace = synthetic_trace(class_names=["هدهد", "حمامة"], epochs=1, n_images=40, n_eval=40, n_probe=1, skill=0)
    written, faces = texts_of(clipviz.save(figures.confusion(trace), tmp_path / "a.svg").read_text("utf-8"))
    assert "GSUB" in faces["DejaVu Sans", "400"]
    pair = next(element.text for element in written if "→" in (element.text or "") and "هدهد" in element.text)
    mark = "\u200e"  # else the arrow would point from the prediction to the true class
    assert re.fullmatch(f"{mark}\\w+{mark} → {mark}\\w+{mark}", pair)


def test_a_view_is_saved_as_it_stands(trace, tmp_path):
    view = SaliencyExplorer(trace)
    assert clipviz.save(view, str(tmp_path / "new" / "a.PDF")).read_bytes().startswith(b"%PDF")


def test_the_same_figure_gives_the_same_file(trace, tmp_path):
    for suffix in ("pdf", "svg", "png"):
        one, other = (clipviz.save(figures.loss_terms(trace), tmp_path / f"{i}.{suffix}", dpi=50) for i in "ab")
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", ["a.gif", "a", ".pdf", "a.pdf.bak", "a.html"])
def test_another_suffix_is_one_sentence(name, trace, tmp_path):
    with pytest.raises(
        ValueError, match=r"^unknown ending of a picture .* Choose from '\.pdf', '\.svg', '\.png', '\.jpg'$"
    ):
        clipviz.save(figures.why_wrong(trace), tmp_path / name)
    assert not any(tmp_path.iterdir())


def test_what_is_no_figure_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"wanted a figure .* got Trace"):
        clipviz.save(synthetic_trace(n_classes=2, epochs=1, n_images=4, n_eval=4, n_probe=1), tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="got pie"):
        clipviz.save(go.Figure(go.Pie(values=[1])), tmp_path / "a.pdf")
    assert not any(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_left_as_it_was(trace, tmp_path, monkeypatch):
    place = tmp_path / "a.svg"
    place.write_text("old")
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(ValueError, match=r"^cannot write .*a\.svg: No space left"):
            clipviz.save(figures.loss_terms(trace), place)
    assert [file.name for file in tmp_path.iterdir()] == ["a.svg"]
    assert place.read_text() == "old"
    with pytest.raises(ValueError, match="cannot write"):
        clipviz.save(figures.loss_terms(trace), place / "b.svg")
