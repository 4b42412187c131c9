"""Lettering: how wide a text will be, what of it fits, and how plotly is kept from reading it.

A picture is laid out where no font can be asked, so widths are estimates, generous enough for the
widest of the usual sans-serif fonts.
"""

import html
import re
import unicodedata

_NARROW, _WIDE = set("iljtfrI.,:;'!|()[]/ -"), set("mwMW@%—…→")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SHOWN = {"\n": "↵", "\r": "␍", "\t": "⇥"}


def text_width(text: str, size: float) -> float:
    """An upper estimate of the width of a line at this font size."""
    return size * sum(map(_advance, text))


def shortened(text: str, size: float, limit: float) -> str:
    """The text if it fits, else as much of its beginning as leaves room for an ellipsis."""
    text = visible(text)
    if text_width(text, size) <= limit:
        return text
    room, kept = limit - text_width("…", size), ""
    for character in text:
        room -= size * _advance(character)
        if room < 0:
            break
        kept += character
    return kept.rstrip() + "…"


def visible(text: str) -> str:
    """Control characters as signs, so that a line stays one line."""
    return _CONTROL.sub(lambda found: _SHOWN.get(found.group(), "·"), text)


def escaped(text: str) -> str:
    """The text as plotly shows it: no tags, no entities, no TeX."""
    return html.escape(visible(text), quote=False).replace("$", "&#36;")


def _advance(character: str) -> float:
    """Width over font size."""
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0.0
    if character in _NARROW:
        return 0.42
    if character in _WIDE or unicodedata.east_asian_width(character) in "WF":
        return 1.05
    if character.isupper() or character.isdigit() or not character.isascii():
        return 0.74
    return 0.64
