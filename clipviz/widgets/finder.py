"""Finder: filters, order, nearest images, tags and export of a list of images. A part of the explorers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets
import numpy as np

from clipviz.figures.image_table import OUTCOMES, SORTS, Filter, export_csv, ordered, passing
from clipviz.figures.sources import decision_name, kinds_of_decision, source_names
from clipviz.figures.style import apart
from clipviz.files import write_text
from clipviz.trace import Tags
from clipviz.widgets.album import Album
from clipviz.widgets.controls import PLAIN, button, said, show_if, wrapped

if TYPE_CHECKING:
    from clipviz.widgets.explorer import ImageExplorer

_BATCH, _SECONDS = 64, 10.0
_GRID = {"grid_template_columns": "repeat(auto-fill, minmax(236px, 1fr))", "grid_gap": "0 12px", "width": "98%"}


class Finder:
    """Narrows the list of its owner, whose `refill` is called when a control moves, and tags the selected images.

    `message` says what the last action did, or why it could not; `tags` is None where their file cannot be read.
    """

    def __init__(self, owner: ImageExplorer, folder: str) -> None:
        self._owner, self._ids = owner, list[str]()
        self._near: dict[int, Nearest] = {}
        self.message, self._said, self.tags = said(), "", None
        try:
            self.tags = Tags(folder)
        except ValueError as error:
            self.message.value = str(error)
        filters = self._make_filters()
        self._plain = [(each, each.value) for each in filters]
        self.widget = ipywidgets.VBox([ipywidgets.GridBox(filters, layout=_GRID), self._make_acts(), self.message])
        self.more = ipywidgets.ToggleButton(False, description="Find", icon="search", layout={"width": "80px"},
                                            tooltip="filter, sort, nearest images, tags, export")  # fmt: skip
        self.more.observe(lambda change: show_if(change["new"], self.widget), "value")
        show_if(False, self.widget)

    def _make_filters(self) -> list[Any]:
        trace = self._owner.inspector.album.trace
        sources, self._classes = source_names(trace), apart(trace.class_names, 60)
        decided = [(decision_name(kind, sources), kind) for kind in kinds_of_decision(sources)]

        def control(kind: Any, name: str, **options: Any) -> Any:
            made = kind(description=name, style=PLAIN, layout={"width": "auto"}, **options)
            made.observe(lambda _: self._owner.refill(), "value")
            return made

        words = partial(control, ipywidgets.Combobox, continuous_update=False)
        share = partial(control, ipywidgets.FloatRangeSlider, value=(0, 1), max=1, step=0.01, continuous_update=False)
        choice = partial(control, ipywidgets.Dropdown)
        self.target, self.label = (words(name, options=self._classes) for name in ("true class", "predicted class"))
        self.confidence, self.margin = share("confidence"), share("margin")
        self.flips = control(ipywidgets.BoundedIntText, "flips, at least", max=10**6)
        self.decider = choice("decided by", options=[("any", ""), *decided])
        self.outcome = choice("outcome", options=[("any", ""), *((name, name) for name in OUTCOMES)])
        self.text, self.tag = words("file name has"), choice("tag", options=self._tag_options())
        self.sort, self.falling = choice("sort by", options=list(SORTS)), control(ipywidgets.Checkbox, "falling")
        self.near = words("nearest to", placeholder="a sentence, or eval/12")
        show_if(len(sources) > 1, self.decider)
        show_if(trace.has_targets, self.target)
        return [self.target, self.label, self.outcome, self.confidence, self.margin, self.flips, self.decider,
                self.text, self.tag, self.sort, self.falling, self.near]  # fmt: skip

    def _make_acts(self) -> ipywidgets.Widget:
        self.tag_name = ipywidgets.Text(description="tag", placeholder="a word", style=PLAIN, layout={"width": "150px"})
        self.file = ipywidgets.Text("selection.csv", description="file", style=PLAIN, layout={"width": "260px"})
        tagging = [
            self.tag_name, button("Tag", "tag", lambda: self._change_tag(True), "add this tag to the chosen images"),
            button("Untag", "times", lambda: self._change_tag(False), "remove this tag from the chosen images"),
        ]  # fmt: skip
        for part in tagging:
            part.disabled = self.tags is None
        return wrapped(
            button("Near this", "crosshairs", self._near_chosen, "sort by similarity to the chosen image"),
            button("Reset", "undo", self.reset, "reset all filters"), *tagging, self.file,
            button("Export", "download", self.export, "write the listed images to this file as CSV"),
        )  # fmt: skip

    def _tag_options(self) -> list[tuple[str, str]]:
        return [("any", ""), *((name, name) for name in (self.tags.names if self.tags else ()))]

    @property
    def wanted(self) -> Filter:
        """What the controls ask for."""
        target, label = (self._labels(control.value.strip()) for control in (self.target, self.label))
        return Filter(target, label, self.confidence.value, self.margin.value, self.flips.value, self.decider.value,
                      self.outcome.value, self.text.value.strip())  # fmt: skip

    @property
    def said(self) -> str:
        """What the list is narrowed to and sorted by, after a comma; "" for nothing."""
        moved = (each for each, plain in self._plain if each.value != plain)
        return "".join(f", {each.description} {each.value}".removesuffix(" True") for each in moved)

    def _labels(self, words: str) -> tuple[int, ...] | None:
        """The class of a name, or all whose names contain the words; None of no words."""
        if words in self._classes:
            return (self._classes.index(words),)
        found = (label for label, name in enumerate(self._classes) if words.lower() in name.lower())
        return tuple(found) if words else None

    def narrowed(self, ids: list[str], epoch: int) -> list[str]:
        """Those of the images that pass, in order; what cannot be answered is told, and leaves the list as it is."""
        album, said = self._owner.inspector.album, ""
        if (asked := self.near.value.strip()) and ids:
            try:
                ids, said = self._near.setdefault(id(album), Nearest(album)).order(asked, ids, epoch)
            except (ValueError, RuntimeError, TimeoutError) as error:
                said = str(error) or "no answer in time"
        if self.tag.value and self.tags:
            ids = [image for image in ids if self.tag.value in self.tags.by_image.get(image, ())]
        if self.wanted != Filter() or SORTS[self.sort.value] or self.falling.value:
            table = passing(album.rows(ids, epoch), self.wanted)
            ids = list(ordered(table, self.sort.value, falling=self.falling.value).index)
        if said or self.message.value == self._said:
            self.message.value = self._said = said
        self._ids = ids
        return ids

    def reset(self) -> None:
        """Let all images pass, as they are listed."""
        for control, value in self._plain:
            control.value = value

    def _near_chosen(self) -> None:
        self.near.value = next(iter(self._owner.state.selected), "")

    def _change_tag(self, add: bool) -> None:
        chosen, tag, tags = self._owner.state.selected, self.tag_name.value, self.tags
        try:
            if tags is None or not chosen:
                raise ValueError("choose an image first")
            tags.change(chosen, tag, add=add)
        except ValueError as error:
            self.message.value = str(error)
            return
        where = f"kept in {tags.path}" if tags.path else "in memory only: this run has no folder"
        images = chosen[0] if len(chosen) == 1 else f"{len(chosen)} images"
        self.message.value = f"{images}: {'+' if add else '-'}{tag.strip()}, {where}"
        kept, self.tag.options = self.tag.value, self._tag_options()
        self.tag.value = kept if kept in tags.names else ""
        self._owner.refill()

    def export(self) -> None:
        """Write the listed images to the file, unless there is another that is no such list."""
        album, path = self._owner.inspector.album, Path(self.file.value).expanduser()
        table = album.rows(self._ids, self._owner.state.epoch).assign(**self._owner.more_columns())
        text = export_csv(table, album.trace.class_names, self.tags.by_image if self.tags else {})
        try:
            if path.exists() and not path.read_bytes().startswith(b"image,file,tags,"):
                raise ValueError(f"{path} exists and is not a list of images; give another name")
            write_text(path, text)
            self.message.value = f"wrote {len(table)} image{'s' * (len(table) != 1)} to {path.resolve()}"
        except (OSError, ValueError) as error:
            self.message.value = str(error)


class Nearest:
    """Embeds the images of an album when it is asked for neighbors, for some seconds at a time, and keeps that.

    Without a model it knows the images whose embeddings are in the trace, and no sentences.
    """

    def __init__(self, album: Album) -> None:
        self.album = album
        self._kept: dict[str, np.ndarray] = {}  # id -> (E,) unit norm

    def order(self, asked: str, images: Sequence[str], epoch: int) -> tuple[list[str], str]:
        """The known images, nearest to an image or a sentence first; and what to say. ValueError if none are known."""
        album, is_image = self.album, asked in images or ("/" in asked and self.album.has(asked))
        if album.model_probe is None and not is_image:
            raise ValueError("a sentence can only be embedded by the model; open the run with its model")
        kept = self._embedded([asked] * is_image, images) or self._recorded(epoch)
        known = [image for image in images if image in kept]
        if not known or (is_image and asked not in kept):
            raise ValueError("the trace holds no embedding of this image; open the run with its model")
        query = kept[asked] if is_image else album.model_probe.embed_text([asked])[0]
        similarity = np.stack([kept[image] for image in known]).astype(np.float32) @ query.astype(np.float32)
        places = np.argsort(-similarity, kind="stable")
        among = "" if len(known) == len(images) else f" among the {len(known)} of {len(images)} embedded so far"
        best = f"cosine {similarity[places[0]]:.2f} to {similarity[places[-1]]:.2f}"
        return [known[place] for place in places], f"nearest to {asked!r}{among}: {best}"

    def _recorded(self, epoch: int) -> dict[str, np.ndarray]:
        """What the trace holds of an epoch, where there is no model, or no pixels."""
        if (stored := self.album.trace.embeddings) is None:
            return {}
        n_measured = int((self.album.trace.predictions["epoch"].unique() <= epoch).sum())
        rows = stored.images[min(max(n_measured, 1), len(stored.images)) - 1]
        return {f"eval/{index}": row for index, row in zip(stored.index.tolist(), rows, strict=True)}

    def _embedded(self, first: Sequence[str], images: Sequence[str]) -> dict[str, np.ndarray]:
        """All that is known, with what could be embedded of these images before the time was over."""
        end = time.monotonic() + _SECONDS
        wanted = [*first, *images] if self.album.model_probe is not None else []
        missing = [image for image in wanted if image not in self._kept and self.album.has(image)]
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            pixels = np.stack([self.album.pixels(image) for image in batch])
            self._kept.update(zip(batch, self.album.model_probe.embed(pixels), strict=True))
            if time.monotonic() > end:
                break
        return self._kept
