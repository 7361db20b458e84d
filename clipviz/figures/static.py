"""Figures as pictures: what a notebook keeps, so that it can be read without a kernel, a browser or a network."""

from __future__ import annotations

import base64
import io
import os
import warnings
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from matplotlib.figure import Figure
from PIL import Image

from clipviz.errors import choose
from clipviz.figures.redraw import plain, redraw
from clipviz.files import writing


def show(figure: go.Figure | Figure) -> None:
    """Put a figure into the notebook as a picture.

    The output holds a PNG or JPEG and a line of text, so it looks the same on GitHub, in a browser tab without a
    kernel and on paper. For a plotly figure that answers the mouse, end a cell with the figure itself instead.

    Args:
        figure: from `clipviz.figures`, or any other matplotlib figure.
    """
    from IPython.display import display

    if isinstance(figure, go.Figure):
        mime, content, title = "image/png", png(redraw(figure)), plain(figure.layout.title.text or "chart")
    else:
        mime, content, title = "image/jpeg", jpeg(figure), _title(figure)
    data = {mime: base64.b64encode(content).decode(), "text/plain": f"[picture: {title}]"}
    display(data, metadata={mime: {"alt": title}}, raw=True)


def save(figure: go.Figure | Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure to a file of the kind that its ending says: .png, .jpg, .svg, .pdf, or .html for a chart.

    Args:
        figure: from `clipviz.figures`, or any other matplotlib figure.
        path: an older file is replaced when the new one is whole.

    Raises:
        ValueError: an ending of no such kind, or a place that cannot be written.
    """
    path, chart = Path(path).expanduser(), figure if isinstance(figure, go.Figure) else None
    kinds = (".png", ".jpg", ".svg", ".pdf", *([".html"] if chart else []))
    kind = choose("ending of a picture", path.suffix.lower(), kinds)
    with writing(path) as file:
        if chart and kind == ".html":
            file.write(chart.to_html().encode())
        else:
            drawn = redraw(chart) if chart else figure
            drawn.savefig(file, format=kind[1:], facecolor="white", dpi=2 * drawn.dpi)
    return path


def png(figure: Figure) -> bytes:
    """A chart as PNG with at most 128 colours, a third of the size of true colour."""
    return encoded(pixels(figure).quantize(128, dither=Image.Dither.NONE), "PNG")


def jpeg(figure: Figure) -> bytes:
    """Photographs with captions as JPEG, letters kept sharp."""
    return encoded(pixels(figure), "JPEG", quality=80, subsampling=0)


def pixels(figure: Figure, dpi: float | None = None) -> Image.Image:
    """The figure as RGB."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Letters that the font lacks become boxes, which says as much as a warning on a terminal would.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        options = {"compress_level": 1}  # it is read at once
        figure.savefig(buffer, format="png", facecolor="white", dpi=dpi or figure.dpi, pil_kwargs=options)
    return Image.open(buffer).convert("RGB")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A file, as small as it gets."""
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, **options)
    return buffer.getvalue()


def _title(figure: Figure) -> str:
    words = [figure.get_suptitle(), *(text.get_text() for text in figure.texts)]
    words += [text for axes in figure.axes for text in (axes.get_title(), axes.get_title("left"))]
    return " ".join(next((word for word in words if word.strip()), "image grid").split())
