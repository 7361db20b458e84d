"""Fonts of pictures: letters that the ordinary one lacks come from others that are installed, and are text in files."""

import base64
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from fontTools.subset import Subsetter
from fontTools.ttLib import TTFont
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text

from clipviz.figures.style import LOOKS


@contextmanager
def lettered(figure: Figure) -> Iterator[None]:
    """Measure or draw a figure whose texts take letters that their fonts lack from others that are installed.

    What no font has becomes a box, which says as much as matplotlib's warnings on a terminal would.
    """
    log = logging.getLogger("matplotlib.font_manager")  # it warns of a family that has no bold letters
    level = log.level
    log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        try:
            _find_letters([text for text in figure.findobj(Text) if not text.get_text().isascii()])
            yield
        finally:
            log.setLevel(level)


def _find_letters(texts: list[Text]) -> None:
    has_kana = any(re.search("[\u3041-\u30ff]", text.get_text()) for text in texts)
    families = [*LOOKS["fonts"]["japanese"] * has_kana, *LOOKS["fonts"]["any"]]
    installed = {font.name for font in fontManager.ttflist} if texts else set()
    for text in texts:
        missing = {*text.get_text()}.difference(*(_letters(path) for path in _files(text)))
        for family in families if missing else ():
            if family in installed and (found := missing & _letters(_file(text, family))):
                text.set_fontfamily([*text.get_fontfamily(), family])
                missing -= found


def _file(text: Text, family: str) -> str:
    """The path of a family in the weight and slant of a text; matplotlib's has the number of the face, too."""
    wanted = text.get_fontproperties().copy()
    wanted.set_family(family)
    return findfont(wanted)


def _files(text: Text) -> list[str]:
    return [_file(text, family) for family in text.get_fontfamily()]


@cache
def _letters(path: str) -> frozenset[str]:
    return frozenset(map(chr, get_font(path).get_charmap()))


def fonts_of(figure: Figure) -> list[tuple[TTFont, str]]:
    """The fonts of a figure, and the letters that it takes from each."""
    used: dict[str, set[str]] = {}
    for text in figure.findobj(Text):
        letters = {*text.get_text()}
        for path in _files(text):
            used.setdefault(path, set()).update(letters & _letters(path))
            letters -= _letters(path)
    faces = {path: int(getattr(path, "face_index", 0)) for path in used}
    return [(TTFont(path, fontNumber=face, recalcTimestamp=False), "".join(used[path])) for path, face in faces.items()]


def style_sheet(figure: Figure) -> bytes:
    """That of the fonts of a figure, each with the letters that it needs."""
    sheet = ""
    for font, letters in fonts_of(figure):
        buffer = io.BytesIO()
        joins = {"GSUB", "GDEF"} if re.search("[\u0590-\u109f]", letters) else set()  # as Arabic does
        for table in ({"FFTM", "GSUB", "GPOS", "GDEF", "kern"} - joins) & {*font.keys()}:
            del font[table]  # a subsetter that is told to do so reads them first, which takes longer than all else
        subsetter = Subsetter()
        subsetter.populate(text=letters)
        subsetter.subset(font)
        font.flavor = "woff"
        font.save(buffer)
        source = f"data:font/woff;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        name, slant = font["name"].getDebugName(1), "italic" if font["post"].italicAngle else "normal"
        look = f"font-family:'{name}';font-weight:{font['OS/2'].usWeightClass};font-style:{slant}"
        sheet += f"\n@font-face{{{look};src:url({source})}}"
    return sheet.encode()
