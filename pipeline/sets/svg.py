"""Charts as SVG text: bars and lines between two axes, nothing but numbers and words of ours in it.

A plotting library takes half a second to be imported; what a report shows is some bars and two kinds
of lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, Literal, NamedTuple

from markupsafe import escape

WIDTH: Final = 302
HEIGHT: Final = 180
"""Of a chart, in units of its own; narrow, so that its words are readable on a phone."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 290, 18, 146
_LINE_HEIGHT: Final = 13
_MOST_TICKS: Final = 6


class Palette(NamedTuple):
    """Colours of a chart: of its words, its grid, its two data, and what is marked."""

    ink: str
    faint: str
    accent: str
    second: str
    mark: str


class Axis(NamedTuple):
    """What an axis shows, from ``least`` to ``most``, and where it has words.

    >>> Axis("rows", 0, 4, [(0, "0"), (2, "2"), (4, "4")]).share_of(1)
    0.25
    """

    label: str
    least: float
    most: float
    ticks: Sequence[tuple[float, str]]
    is_log: bool = False

    def share_of(self, value: float) -> float:
        """Return how far along the axis a value is, 0 to 1."""
        if self.is_log:
            return math.log(value / self.least) / math.log(self.most / self.least)
        return (value - self.least) / (self.most - self.least)


def count_up(label: str, most: float) -> Axis:
    """Return an axis of whole numbers from 0 to ``most``, a round step apart.

    >>> [words for _, words in count_up("rows", 2300).ticks]
    ['0', '500', '1,000', '1,500', '2,000']
    """
    most = max(1.0, most)
    exponent = math.floor(math.log10(most / _MOST_TICKS)) if most > _MOST_TICKS else 0
    sizes = (factor * 10**power for power in (exponent, exponent + 1) for factor in (1, 2, 5))
    step = next(size for size in sizes if most / size <= _MOST_TICKS)
    ticks = [(value, f"{value:,}") for value in range(0, math.floor(most) + 1, step)]
    return Axis(label, 0, most * 1.04, ticks)


def double_up(label: str, least: float, most: float) -> Axis:
    """Return a logarithmic axis with words at powers of two, or of ten where that would be many.

    >>> [words for _, words in double_up("tokens", 100, 900).ticks]
    ['128', '256', '512']
    """
    base = 10 if most / least >= 300 else 2
    ticks = [(float(base**power), f"{base**power:,}") for power in range(40)]
    low, high = least * 0.9, most * 1.15
    return Axis(label, low, high, [tick for tick in ticks if low < tick[0] <= most * 1.1], True)


class Chart:
    """One chart: what is added is drawn in that order, above the grid."""

    def __init__(self, x: Axis, y: Axis, palette: Palette) -> None:
        self._x, self._y, self._palette = x, y, palette
        self._drawn: list[str] = []
        self._named = 0

    def add_bars(self, counts: Iterable[int], edges: Sequence[float], colour: str) -> None:
        """Draw bars of ``counts`` between ``edges``, one more than the counts, as one shape."""
        path = [f"M{self._at_x(edges[0])} {_BOTTOM}"]
        for count, end in zip(counts, edges[1:], strict=True):
            path.append(f"V{self._at_y(count)}H{self._at_x(end)}")
        self._drawn.append(f'<path d="{"".join(path)}V{_BOTTOM}z" fill="{colour}"/>')

    def add_line(
        self,
        points: Iterable[tuple[float, float]],
        colour: str,
        name: str,
        side: Literal["left", "right"],
    ) -> None:
        """Draw a line through ``points``, and its name at the top of that side."""
        places = " ".join(f"{self._at_x(x)},{self._at_y(y)}" for x, y in points)
        self._drawn.append(
            f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
        at, anchor = (_LEFT + 6, "start") if side == "left" else (_RIGHT, "end")
        height = _TOP + 10 + _LINE_HEIGHT * self._named
        self._drawn.append(_write(at, height, name, anchor, colour))
        self._named += 1

    def add_mark(self, value: float, words: str) -> None:
        """Draw a dashed line at a value of the x axis, and its words above it."""
        at, colour = self._at_x(value), self._palette.mark
        self._drawn.append(
            f'<path d="M{at} {_TOP}V{_BOTTOM}" stroke="{colour}" stroke-dasharray="4 3"/>'
        )
        # Above what is drawn, and never beyond the left edge.
        anchor = "end" if at > _LEFT + 80 else "start"
        self._drawn.append(_write(at, _TOP - 5, words, anchor, colour))

    def to_svg(self, *, at: tuple[float, float] | None = None) -> str:
        """Return the chart as an element, with a place of its own inside another element or none."""
        ink, faint = self._palette.ink, self._palette.faint
        grid = [
            f'<path d="M{_LEFT} {self._at_y(value)}H{_RIGHT}" stroke="{faint}" stroke-width=".5"/>'
            + _write(_LEFT - 4, self._at_y(value) + 3, words, "end", ink)
            for value, words in self._y.ticks
        ]
        below = [
            _write(self._at_x(value), _BOTTOM + 13, words, "middle", ink)
            for value, words in self._x.ticks
        ]
        axes = f'<path d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}" fill="none" stroke="{faint}"/>'
        middle = (_TOP + _BOTTOM) / 2
        labels = (
            _write((_LEFT + _RIGHT) / 2, HEIGHT - 6, self._x.label, "middle", ink)
            + f'<text transform="translate(10 {middle}) rotate(-90)" text-anchor="middle" '
            f'fill="{ink}">{escape(self._y.label)}</text>'
        )
        place = "" if at is None else f' x="{at[0]}" y="{at[1]}" width="{WIDTH}" height="{HEIGHT}"'
        return (
            f'<svg{place} aria-hidden="true" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="10">'
            + "".join([*grid, *self._drawn, axes, *below, labels])
            + "</svg>"
        )

    def _at_x(self, value: float) -> float:
        return round(_LEFT + self._x.share_of(value) * (_RIGHT - _LEFT), 1)

    def _at_y(self, value: float) -> float:
        return round(_BOTTOM - self._y.share_of(value) * (_BOTTOM - _TOP), 1)


def _write(x: float, y: float, words: str, anchor: str, colour: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'
