"""Which figures a report draws, by chapter and in reading order: the words are in `views.toml`."""

import tomllib
from importlib.resources import files
from typing import NamedTuple

import plotly.graph_objects as go
from matplotlib.figure import Figure

from clipviz import figures
from clipviz.figures.sources import draw_gamma_what_if
from clipviz.figures.style import is_empty
from clipviz.trace import Trace


class View(NamedTuple):
    """Figures of runs under one heading, with what to look for in them.

    `figure` names the function that draws a trace. `same_axes` says that the axes of all runs get one range, `is_wide`
    that a figure has panels or names for which half a page is too narrow.
    """

    figure: str
    title: str
    look_for: str
    same_axes: bool = True
    is_wide: bool = False

    def draw(self, trace: Trace) -> go.Figure | Figure | None:
        """The figure; None if the trace lacks the data for it."""
        drawn = {**vars(figures), "gamma_what_if": gamma_what_if}[self.figure](trace)
        return None if is_empty(drawn) else drawn


def gamma_what_if(trace: Trace) -> go.Figure:
    """Only where labels came from gamma * first + (1 - gamma) * second is another gamma a true what-if."""
    info = figures.gamma_what_if_info(trace)
    return draw_gamma_what_if(info if info.is_own else info._replace(sources=None))


_READ = tomllib.loads((files("clipviz.report") / "views.toml").read_text(encoding="utf-8"))
CHAPTERS = {chapter: [View(**row) for row in rows] for chapter, rows in _READ.items()}
VIEWS = [view for views in CHAPTERS.values() for view in views]
