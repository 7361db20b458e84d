"""DescriptionPlayground: other words for a class, and what they do to its row of the classifier and to the logits."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from clipviz.errors import one_line
from clipviz.figures.sources import DIAGNOSTIC, softmax
from clipviz.figures.style import BLUE, GRAY, Look, apart, escape, shorten
from clipviz.trace import Trace
from clipviz.widgets.album import Album, Verdict
from clipviz.widgets.canvases import COLUMNS, ChartCanvas, GalleryCanvas, Picture
from clipviz.widgets.charts import Chart, Series
from clipviz.widgets.controls import button, dropdown, wrapped
from clipviz.widgets.inspector import probe_of
from clipviz.widgets.view import Newest, View, ViewState, follow, state_of

_TOP = 5
_LOOKS = {"given sentences": Look(GRAY, "square", "none"), "these sentences": Look(BLUE, "circle", "none")}
_TRY = (
    "<b>Try:</b> write one sentence that names what sets the class apart, then one that also fits its look-alikes. "
    "<b>Notice:</b> one row and one logit of each image change, the others do not: a sentence that wins an image for "
    "this class can take one from another. <b>It needs a kernel:</b> the text tower embeds every change."
)


class DescriptionPlayground(View):
    """Edit the sentences of a class, one on a line: its row of the classifier is encoded again, and the logits follow.

    What it says of an image is the zero-shot answer of the image tower as it is now, whatever the method does besides.

    Args:
        trace: of a run on the images to choose from.
        model: a `Run` or `ModelProbe` with a text tower; a ValueError without one.
        state: shared with other views; the first of `selected` is the image whose logits are shown.
    """

    alt = ""

    def __init__(self, trace: Trace, model: Any, *, state: ViewState | None = None) -> None:
        self.state = state_of(state, [trace])
        self.album, self._newest = Album(trace, probe_of(model)), Newest()
        if (probe := self.album.model_probe) is None:
            raise ValueError("wanted a model that embeds the sentences, got None; give a Run or a ModelProbe")
        if not trace.class_names:
            raise ValueError("this run has recorded nothing yet; start it, and run the cell again when it has")
        self._names = apart(trace.class_names, 60)
        self._given = [probe.prompts.description_sentences(name) for name in trace.class_names]
        self._rows = probe.embed_text(*self._given)  # (C, E)
        self._like = np.argsort(-self._rows @ self._rows.T)[:, :_TOP]  # of each class: itself, then its look-alikes
        self._make_controls()
        self.begin()
        self.gallery.link(self.state)
        self._image_chosen()
        follow(self.state, self._image_chosen, "selected")

    def __repr__(self) -> str:
        return f"DescriptionPlayground({shorten(self.album.trace.method, 40)})"

    def _make_controls(self) -> None:
        self.chosen = dropdown("class", [(name, c) for c, name in enumerate(self._names)], self.begin, width=300)
        self.again = button("Given sentences", "undo", self.begin, "restore the given sentences", "auto")
        self.words = ipywidgets.Textarea(rows=6, placeholder="one sentence per line", layout={"width": "auto"})
        self.words.observe(lambda _: self._read(), "value")
        self.result = ipywidgets.HTML()
        self.canvases = [ChartCanvas(layout={"flex": "1 1 350px", "min_width": "0"}) for _ in range(2)]
        self.gallery = GalleryCanvas(empty="No image of this class, or predicted as it, can be shown.")
        rows = wrapped(self.chosen, self.again), self.words, self.result, wrapped(*self.canvases), self.gallery
        self.widget = ipywidgets.VBox([ipywidgets.HTML(_TRY), *rows])

    def begin(self) -> None:
        """Take the given sentences of the chosen class, and images of it and of its nearest look-alike."""
        self._fill(())
        given, before = "\n".join(self._given[self.chosen.value]), self.words.value
        self.words.value = given
        if given == before:
            self._read()

    def _fill(self, first: Sequence[str]) -> None:
        """The least sure images of both classes, after the one that was chosen elsewhere."""
        pair, table = self._like[self.chosen.value, :2], self.album.table(self.state.epoch)
        near = table[table["label"].isin(pair) | table["target"].isin(pair)].sort_values("confidence", kind="stable")
        found = dict.fromkeys([*filter(self.album.has, first), *self.album.shown(near.index, "eval")])
        images, probe = list(found)[:COLUMNS], self.album.model_probe
        pixels = [*map(self.album.pixels, images)]
        embeddings = probe.embed(np.stack(pixels)) if pixels else self._rows[:0]
        self._shown = images, probe.logit_scale * embeddings  # n ids, (n, E)
        self.gallery.fill(images, images, pixels, "Images of this class and of its nearest look-alike")

    def _image_chosen(self) -> None:
        if not {*(first := self.state.selected[:1])} <= {*self._shown[0]}:
            self._fill(first)
        self._read()

    def _read(self) -> None:
        """Encode the words; only the answer to the newest ones is shown."""
        question, sentences = self._newest.ask(), [line for line in self.words.value.splitlines() if line.strip()]
        try:
            if not sentences:
                raise ValueError("Write at least one sentence.")
            (row,) = self.album.model_probe.embed_text(sentences)
        except (ValueError, TimeoutError) as error:
            problem = escape(one_line(error) or "No answer in time.")
            self._newest.show(question, lambda: setattr(self.result, "value", problem))
        else:
            self._newest.show(question, lambda: self._publish(row))

    def _publish(self, row: np.ndarray) -> None:
        """Charts, captions and the sentence for a row (E,) of the chosen class."""
        c, own, (images, scaled) = self.chosen.value, self._rows[self.chosen.value], self._shown
        given, new = scaled @ self._rows.T, scaled @ self._rows.T  # (n, C)
        new[:, c] = scaled @ row
        target = np.array([self.album.verdict(image, self.state.epoch).target for image in images], int)
        calls = [self._call(*each) for each in zip(images, new, target.tolist(), strict=True)]
        self.gallery.captions = [f"{image}: {call}" for image, call in zip(images, calls, strict=True)]
        title, like = f"Cosines of the row of {shorten(self._names[c], 24)}", self._like[c]
        self.charts = [self._chart(title, "cosine", like, self._rows[like] @ own, self._rows[like] @ row)]
        said = [f"The new row has cosine {row @ own:.3f} with the given one."]
        if images:
            at = next((i for i, image in enumerate(images) if image in self.state.selected[:1]), 0)
            said += [f"{images[at]}: {calls[at]}; with the given sentences {self._call(images[at], given[at], -1)}."]
            best = np.argsort(-np.maximum(given[at], new[at]))[:_TOP]
            moved = np.where(best == c, new[at][best], np.nan)
            self.charts += [self._chart(f"Logits of {images[at]}", "logit", best, given[at][best], moved, target[at])]
        if (target >= 0).any():
            right = [(logits.argmax(1) == target).sum() for logits in (new, given)]
            n, (now, before) = int((target >= 0).sum()), right
            of = f"{n}{' labeled' * (n < len(images))} image{'s' * (n != 1)}"
            said.append(f"Right on {now} of {of}, with the given sentences on {before} {DIAGNOSTIC}.")
        for canvas, chart in zip_longest(self.canvases, self.charts):
            canvas.spec = chart.to_json() if chart else {}
        self.said, self.alt = said, f"{self!r}: {self._names[c]}. {' '.join(said)}"
        self.result.value = escape(" ".join(said))

    def _call(self, image: str, logits: np.ndarray, true: int) -> str:
        label = int(np.argmax(logits))
        return self.album.said(image, Verdict(label, float(softmax(logits)[label]), true))

    def _chart(self, title: str, y: str, classes: np.ndarray, given: Any, new: Any, true: int = -1) -> Chart:
        """Numbers of some classes with the given sentences and by the new ones; NaN where these change nothing."""
        names = apart([self._names[c] for c in classes], 18)
        ticks = [(float(i), "✓ " * bool(c == true) + names[i]) for i, c in enumerate(classes)]
        numbers = zip(_LOOKS.items(), (given, new), strict=True)
        series = [Series(name, look, range(len(names)), values) for (name, look), values in numbers]
        return Chart(title, "class", y, series, ticks=ticks, names=True)

    def draw(self) -> Figure:
        """The words, what they do, the charts and the images."""
        words, name = self.words.value.splitlines(), self._names[self.chosen.value]
        lines = [*words[:2], *[f"... and {len(words) - 2} more sentences"] * (len(words) > 2), *self.said]
        height = 3.95 + 0.2 * len(lines) + Picture.inches(self._shown[0], [])
        picture = Picture(height, f"Sentences for {name}; editing them needs a kernel")
        for line in lines:
            picture.write(shorten(line, 110), 0.2)
        picture.skip(0.2)
        for left, chart in zip((0.075, 0.575), self.charts, strict=False):
            chart.draw(picture.axes(left, 0.39, 2.3))
            picture.skip(-2.3)
        picture.skip(3.25)
        picture.thumbnails([*map(self.album.pixels, self._shown[0])])
        return picture.figure
