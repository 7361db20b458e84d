"""Which figures a report draws, by chapter and in reading order: the words are in `views.toml`."""

import tomllib
from collections.abc import Callable
from importlib.resources import files
from typing import NamedTuple

import plotly.graph_objects as go
from matplotlib.figure import Figure

from clipviz import figures
from clipviz.figures.style import is_empty
from clipviz.trace import Trace


class View(NamedTuple):
    """Figures of runs under one heading, with what to look for in them.

    `figure` names the function that draws one of a trace, or of each of its first `n` images. `is_explored` says that
    one can explore the same in the page, `same_axes` that the axes of all runs get one range, `is_wide` that a figure
    has panels or names for which half a page is too narrow.
    """

    figure: str
    title: str
    look_for: str
    n: int = 0
    is_explored: bool = False
    same_axes: bool = True
    is_wide: bool = False

    def figures(self, trace: Trace) -> list[go.Figure | Figure]:
        """Those that the trace has the data for."""
        draw: Callable[..., go.Figure | Figure] = {**vars(figures), "gamma_what_if": gamma_what_if}[self.figure]
        drawn = [draw(trace, i) for i in range(self.n)] if self.n else [draw(trace)]
        return [figure for figure in drawn if not is_empty(figure)]


def gamma_what_if(trace: Trace) -> go.Figure:
    """Only where labels came from gamma * first + (1 - gamma) * second is another gamma a true what-if."""
    info = figures.gamma_what_if_info(trace)
    return figures.draw_gamma_what_if(info if info.is_own else info._replace(sources=None))


_READ = tomllib.loads((files("clipviz.report") / "views.toml").read_text(encoding="utf-8"))
CHAPTERS = {chapter: [View(**row) for row in rows] for chapter, rows in _READ.items()}
VIEWS = [view for views in CHAPTERS.values() for view in views]
