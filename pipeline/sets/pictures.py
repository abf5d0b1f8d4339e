"""Figures drawn by matplotlib (imported here and nowhere else): inline SVG for pages, PNG for the card.

The SVG has no colours or fonts of its own: it takes them from CSS variables of the page, so that it
is readable in light, dark and print. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pipeline.sets.figures import CutCurve, PaddingCost, SetFigures
    from pipeline.sets.lengths import Lengths

# Narrow, so that its words are readable where a phone shows it at its own size.
_INCHES: Final = (4.2, 2.5)
_BINS: Final = 40
# A max_len of up to so many times the longest row is drawn.
_NEAR: Final = 4
# matplotlib knows no CSS variables: each stands for one until the SVG is written.
_COLOURS: Final = {
    "#010203": "var(--ink)",
    "#010204": "var(--faint)",
    "#010205": "var(--accent)",
    "#010206": "var(--second)",
    "#010207": "var(--mark)",
}
_INK, _FAINT, _ACCENT, _SECOND, _MARK = _COLOURS
_STYLE: Final = {
    "axes.edgecolor": _FAINT,
    "axes.facecolor": "none",
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "figure.subplot.bottom": 0.18,
    "figure.subplot.left": 0.14,
    "figure.subplot.right": 0.96,
    "figure.subplot.top": 0.96,
    "font.size": 9,
    "grid.color": _FAINT,
    "grid.linewidth": 0.4,
    "svg.fonttype": "none",
    "svg.hashsalt": "context-frozen",
    "text.color": _INK,
    "xtick.color": _INK,
    "xtick.major.size": 0,
    "ytick.color": _INK,
    "ytick.major.size": 0,
}

# The card's picture is a file, and stands on pages of any colour.
_CARD_INCHES: Final = (6, 4)
_CARD_INK, _CARD_MARK = "#303030", "#b03030"
_CARD_COLOURS: Final = ("#3b6fb6", "#2e8b57")
_CARD_STYLE: Final = {
    **dict.fromkeys((name for name, value in _STYLE.items() if value in (_INK, _FAINT)), _CARD_INK),
    "axes.facecolor": "#ffffff",
    "figure.facecolor": "#ffffff",
    "grid.color": "#d0d0d0",
    "figure.dpi": 110,
}


def draw_all(figures: SetFigures, max_len: int) -> dict[str, Markup]:
    """Return the pictures of a set that has rows. Raises `ImportError` where matplotlib is absent."""
    drawn = {
        "context": draw_lengths(figures.context, max_len, "context"),
        "continuation": draw_lengths(figures.continuation, max_len, "continuation"),
        "total": draw_lengths(figures.total, max_len, "row"),
        "cut": draw_cut_curve(figures.cut_curve(), max_len),
        "shares": draw_shares(figures.continuation / figures.total),
    }
    if costs := figures.padding():
        drawn["padding"] = draw_padding(costs)
    # The words in them are ours; the data give numbers only.
    return {name: Markup(svg) for name, svg in drawn.items()}


def draw_lengths(lengths: Lengths, max_len: int, part: str) -> str:
    """Return a histogram of lengths, in tokens, on a logarithmic axis, ``max_len`` marked."""
    with _axes(f"tokens of {part}", "rows") as drawing:
        _fill_histogram(drawing.axes, lengths, max_len, _ACCENT, _MARK)
    return drawing.svg


def draw_shares(shares: NDArray[np.float64]) -> str:
    """Return a histogram of what share of each row its continuation is."""
    counts, edges = np.histogram(shares * 100, 40, (0, 100))
    with _axes("continuation, % of its row's tokens", "rows") as drawing:
        drawing.axes.stairs(counts, edges, fill=True, color=_SECOND)
        drawing.axes.set_xlim(0, 100)
    return drawing.svg


def draw_cut_curve(curve: CutCurve, max_len: int) -> str:
    """Return the shares of rows and tokens that each ``max_len`` would cut."""
    least, most = int(curve.max_lens[0]), int(curve.max_lens[-1])
    with _axes("max_len", "% cut") as drawing:
        drawing.axes.plot(curve.max_lens, 100 * curve.rows, color=_ACCENT, label="rows")
        drawing.axes.plot(curve.max_lens, 100 * curve.tokens, color=_SECOND, label="tokens")
        _use_log_axis(drawing.axes, least, most, max_len, _MARK)
        drawing.axes.set_ylim(0, 101)
        drawing.axes.legend(frameon=False)
    return drawing.svg


def draw_padding(costs: Sequence[PaddingCost]) -> str:
    """Return the padding of batches by their size, drawn at random and of like length."""
    sizes = np.arange(len(costs))
    with _axes("rows per batch", "% padding") as drawing:
        for name, values, colour in (
            ("random", [cost.random for cost in costs], _ACCENT),
            ("of like length", [cost.of_like_length for cost in costs], _SECOND),
        ):
            drawing.axes.plot(sizes, 100 * np.array(values), "o-", color=colour, label=name)
        drawing.axes.set_xticks(sizes, [str(cost.batch_size) for cost in costs])
        drawing.axes.set_ylim(0, None)
        drawing.axes.legend(frameon=False)
    return drawing.svg


def draw_card(figures: SetFigures, max_len: int) -> bytes:
    """Return histograms of contexts and continuations, one above the other, as a PNG.

    A card shows files alone, and has no colours of its own to give: hence a white ground. Raises
    `ImportError` where matplotlib is absent.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {**matplotlib.rcParamsDefault, **_STYLE, **_CARD_STYLE}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=_CARD_INCHES, layout="constrained")
        parts = (("context", figures.context), ("continuation", figures.continuation))
        for axes, (part, lengths), colour in zip(
            figure.subplots(2), parts, _CARD_COLOURS, strict=True
        ):
            axes.set(xlabel=f"tokens of {part}", ylabel="rows")
            axes.grid(axis="y")
            _fill_histogram(axes, lengths, max_len, colour, _CARD_MARK)
        written = io.BytesIO()
        canvas: Any = FigureCanvasAgg(figure)
        # The version of matplotlib would make other bytes of the same picture.
        canvas.print_png(written, metadata={"Software": None})
    return written.getvalue()


def _fill_histogram(axes: Axes, lengths: Lengths, max_len: int, colour: str, mark: str) -> None:
    least, most = max(1, int(lengths.min())), int(lengths.max())
    # Whole numbers, so that no bin lies between two lengths.
    edges = np.unique(np.geomspace(least, most + 1, _BINS + 1).round().astype(np.int64))
    counts, _ = np.histogram(lengths, edges)
    axes.stairs(counts, edges, fill=True, color=colour)
    _use_log_axis(axes, least, most, max_len, mark)


class _Drawing:
    """Axes to draw on, and the SVG when that is done."""

    axes: Axes
    svg: str


@contextmanager
def _axes(x_label: str, y_label: str) -> Generator[_Drawing]:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawing = _Drawing()
    # Whatever style the user has set, the picture is the same.
    style: Any = {**matplotlib.rcParamsDefault, **_STYLE}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=_INCHES)
        drawing.axes = figure.add_subplot()
        drawing.axes.set(xlabel=x_label, ylabel=y_label)
        drawing.axes.grid(axis="y")
        drawing.axes.set_axisbelow(True)
        drawing.axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        yield drawing
        written = io.StringIO()
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(
            written, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    drawing.svg = _fit_into_page(written.getvalue(), f"{x_label}-{y_label}")


def _use_log_axis(axes: Axes, least: int, most: int, max_len: int, mark: str) -> None:
    """Mark round lengths in full, and ``max_len`` unless the picture would be empty up to it."""
    axes.set_xscale("log")
    is_near = least <= max_len <= most * _NEAR
    end = max(most, max_len) if is_near else most
    base = 10 if end / least >= 300 else 2
    ticks = [base**exponent for exponent in range(40) if least <= base**exponent <= end * 1.1]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(least * 0.9, end * 1.15)
    if is_near:
        axes.axvline(max_len, color=mark, linewidth=1.2, linestyle="--")
        axes.annotate(
            f"max_len {max_len:,}",
            (max_len, 1),
            # Room for the page's own font, which may run wider than the one that is measured here.
            (-12, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            horizontalalignment="right",
            verticalalignment="top",
            color=mark,
        )


def _fit_into_page(svg: str, name: str) -> str:
    """Return the bare element: the page's colours and font, and ids that are the picture's own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|defs)>\s*(<rdf:RDF.*?|<style.*?)</\1>", "", svg, flags=re.DOTALL)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"font-family: [^;\"]*; ?", "", svg).replace("xlink:href", "href")
    # Groups are named for nobody; what is drawn by reference is.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    prefix = re.sub(r"\W+", "-", name)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}-", svg)
    return re.sub(
        r"<svg [^>]*(viewBox=\"[^\"]*\")[^>]*>", r'<svg aria-hidden="true" \1>', svg, count=1
    )
