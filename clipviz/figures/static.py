"""Figures as pictures: in a notebook that is read without a kernel or a network, and in files for papers and slides."""

import base64
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import plotly.graph_objects as go
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from clipviz.errors import choose
from clipviz.figures.fonts import fonts_of, lettered, style_sheet
from clipviz.figures.redraw import plain, redraw
from clipviz.files import writing

#: What a format calls the time, which would make two files of one figure differ.
_TIMES = {".pdf": "CreationDate", ".svg": "Date", ".png": "Creation Time"}
#: Text stays text, in TrueType letters, where the formats would else make outlines or bitmaps of it.
_AS_TEXT: dict[Any, Any] = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "clipviz"}


@runtime_checkable
class HasPicture(Protocol):
    """A view of `clipviz.widgets`."""

    def draw(self) -> Figure:
        """Its current state."""

    def picture(self) -> bytes:
        """The same as JPEG."""


def show(figure: go.Figure | Figure | Axes) -> None:
    """Put a figure into the notebook as a picture.

    The output holds a PNG or JPEG and a line of text, so it looks the same on GitHub, in a browser tab without a
    kernel and on paper. For a plotly figure that answers the mouse, end a cell with the figure itself instead.

    Args:
        figure: from `clipviz.figures`, or any other matplotlib figure, or axes of one.
    """
    from IPython.display import display

    figure = cast(Figure, figure.figure) if isinstance(figure, Axes) else figure
    if isinstance(figure, go.Figure):
        mime, content, title = "image/png", png(redraw(figure)), plain(figure.layout.title.text or "chart")
    else:
        mime, content, title = "image/jpeg", jpeg(figure), _title(figure)
    data = {mime: base64.b64encode(content).decode(), "text/plain": f"[picture: {title}]"}
    display(data, metadata={mime: {"alt": title}}, raw=True)


def new_axes(height: float = 3.0) -> Axes:
    """Axes nine inches wide: `show(frame.plot(ax=new_axes()))` draws a pandas table, once."""
    return Figure(figsize=(9, height), layout="constrained").subplots()


def save(figure: go.Figure | Figure | HasPicture, path: str | os.PathLike[str], *, dpi: float = 200) -> Path:
    """Write a figure to a file, for a paper or a slide.

    In a PDF or SVG text is text, with the letters of its fonts in the file; the same figure gives the same bytes.

    Args:
        figure: from `clipviz.figures`, any matplotlib figure, or a view, in its current state.
        path: ends in .pdf, .svg, .png or .jpg, or in .html for a chart that answers the mouse. Folders on the way are
            made; an older file is replaced when the new one is whole.
        dpi: dots per inch of a PNG or JPEG; a figure is nine inches wide.

    Returns:
        The file.

    Raises:
        ValueError: if it is no figure, has another ending or cannot be written.
    """
    target, chart = Path(path).expanduser(), figure if isinstance(figure, go.Figure) else None
    kind = choose("ending of a picture", target.suffix.lower(), (*_TIMES, ".jpg", *([".html"] if chart else [])))
    if chart and kind == ".html":
        content = chart.to_html().encode()
    elif chart:
        content = _rendered(redraw(chart), kind, dpi)
    elif isinstance(figure, Figure):
        content = _rendered(figure, kind, dpi)
    elif isinstance(figure, HasPicture):
        content = _rendered(figure.draw(), kind, dpi)
    else:
        raise ValueError(f"wanted a figure of clipviz.figures, of matplotlib, or a view, got {type(figure).__name__}")
    with writing(target) as file:
        file.write(content)
    return target


def _rendered(figure: Figure, kind: str, dpi: float) -> bytes:
    metadata, buffer = {"Title": _title(figure), _TIMES[kind]: None} if kind in _TIMES else None, io.BytesIO()
    with lettered(figure):
        # PostScript outlines, which matplotlib would call TrueType and some readers not show, as Type 3: text as well.
        type_3: dict[Any, Any] = {"pdf.fonttype": 3} if any("glyf" not in font for font, _ in fonts_of(figure)) else {}
        with rc_context({**_AS_TEXT, **type_3}):
            figure.savefig(buffer, format=kind[1:], facecolor="white", dpi=dpi, metadata=metadata)
    content = buffer.getvalue()
    return content.replace(b"</style>", style_sheet(figure) + b"</style>", 1) if kind == ".svg" else content


def png(figure: Figure) -> bytes:
    """A chart as PNG with at most 128 colors, a third of the size of true color."""
    return encoded(pixels(figure).quantize(128, dither=Image.Dither.NONE), "PNG")


def jpeg(figure: Figure) -> bytes:
    """Photographs with captions as JPEG, letters kept sharp."""
    return encoded(pixels(figure), "JPEG", quality=80, subsampling=0)


def pixels(figure: Figure, dpi: float | None = None) -> Image.Image:
    """The figure as RGB."""
    buffer, inches = io.BytesIO(), figure.get_size_inches()
    with lettered(figure):
        figure.savefig(buffer, format="rgba", facecolor="white", dpi=dpi or figure.dpi)
    size = tuple((inches * (dpi or figure.dpi)).astype(int).tolist())
    return Image.frombytes("RGBA", size, buffer.getvalue()).convert("RGB")


def small_jpeg(drawn: Image.Image, most_bytes: float, tries: Sequence[tuple[float, int]]) -> bytes:
    """A drawn figure as finely as a number of bytes allows: by the first of some (scale, quality) that does."""
    whole = 0.0
    for scale, quality in tries:
        if whole * scale**2 > 2 * most_bytes and (scale, quality) != tries[-1]:
            continue  # it has too many pixels, whatever the quality
        size = round(drawn.width * scale), round(drawn.height * scale)
        data = encoded(drawn.resize(size, Image.Resampling.LANCZOS) if scale < 1 else drawn, "JPEG", quality=quality)
        if len(data) <= most_bytes:
            break
        whole = whole or len(data) / scale**2
    return data


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A file, as small as it gets."""
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, **options)
    return buffer.getvalue()


def _title(figure: Figure) -> str:
    words = [figure.get_suptitle(), *(text.get_text() for text in figure.texts)]
    words += [", ".join(text for axes in figure.axes if (text := axes.get_title() or axes.get_title("left")))]
    return " ".join(next((word for word in words if word.strip()), "image grid").split())
