"""Pictures of a set as SVG: inside a page, whose colours and font they take, and as a card's own file.

The same numbers give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.sets.svg import HEIGHT, WIDTH, Axis, Chart, Palette, count_up, double_up

if TYPE_CHECKING:
    from pipeline.sets.figures import CutCurve, PaddingCost, SetFigures
    from pipeline.sets.lengths import Lengths

_BINS: Final = 40
# A max_len of up to so many times the longest row is drawn.
_NEAR: Final = 4
# Readable in light, dark and print, as the page is.
_OF_PAGE: Final = Palette(
    "var(--ink)", "var(--faint)", "var(--accent)", "var(--second)", "var(--mark)"
)
# A file of its own stands on pages of any colour.
_OF_CARD: Final = Palette("#303030", "#d0d0d0", "#3b6fb6", "#2e8b57", "#b03030")
_CARD_GROUND: Final = "#ffffff"


def draw_all(figures: SetFigures, max_len: int) -> dict[str, Markup]:
    """Return the pictures of a set that has rows."""
    palette = _OF_PAGE
    drawn = {
        "context": _plot_lengths(figures.context, max_len, "context", palette, palette.accent),
        "continuation": _plot_lengths(
            figures.continuation, max_len, "continuation", palette, palette.accent
        ),
        "total": _plot_lengths(figures.total, max_len, "row", palette, palette.accent),
        "cut": _plot_cut_curve(figures.cut_curve(), max_len, palette),
        "shares": _plot_shares(figures.continuation / figures.total, palette),
    }
    if costs := figures.padding():
        drawn["padding"] = _plot_padding(costs, palette)
    # The words in them are ours; the data give numbers only.
    return {name: Markup(chart.to_svg()) for name, chart in drawn.items()}


def draw_card(figures: SetFigures, max_len: int) -> str:
    """Return histograms of contexts and continuations, one above the other, as a file of SVG."""
    palette = _OF_CARD
    contexts = _plot_lengths(figures.context, max_len, "context", palette, palette.accent)
    continuations = _plot_lengths(
        figures.continuation, max_len, "continuation", palette, palette.second
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {2 * HEIGHT}" '
        f'width="{2 * WIDTH}" height="{4 * HEIGHT}" font-family="sans-serif">'
        f'<rect width="{WIDTH}" height="{2 * HEIGHT}" fill="{_CARD_GROUND}"/>'
        f"{contexts.to_svg(at=(0, 0))}{continuations.to_svg(at=(0, HEIGHT))}</svg>\n"
    )


def _plot_lengths(
    lengths: Lengths, max_len: int, part: str, palette: Palette, colour: str
) -> Chart:
    """Return a histogram of lengths, in tokens, on a logarithmic axis, ``max_len`` marked."""
    least, most = max(1, int(lengths.min())), int(lengths.max())
    # Whole numbers, so that no bin lies between two lengths.
    edges = np.unique(np.geomspace(least, most + 1, _BINS + 1).round().astype(np.int64))
    counts, _ = np.histogram(lengths, edges)
    end = max(most + 1, max_len if _is_near(max_len, least, most) else 0)
    x = double_up(f"tokens of {part}", least, end)
    chart = Chart(x, count_up("rows", int(counts.max())), palette)
    chart.add_bars(counts.tolist(), edges.tolist(), colour)
    _mark_max_len(chart, max_len, least, most)
    return chart


def _plot_shares(shares: NDArray[np.float64], palette: Palette) -> Chart:
    """Return a histogram of what share of each row its continuation is."""
    counts, edges = np.histogram(shares * 100, _BINS, (0, 100))
    x = _percent("continuation, % of its row's tokens")
    chart = Chart(x, count_up("rows", int(counts.max())), palette)
    chart.add_bars(counts.tolist(), edges.tolist(), palette.second)
    return chart


def _plot_cut_curve(curve: CutCurve, max_len: int, palette: Palette) -> Chart:
    """Return the shares of rows and tokens that each ``max_len`` would cut."""
    least, most = int(curve.max_lens[0]), int(curve.max_lens[-1])
    end = max(most, max_len if _is_near(max_len, least, most) else 0)
    chart = Chart(double_up("max_len", least, end), _percent("% cut"), palette)
    lengths = curve.max_lens.tolist()
    for name, shares, colour in (
        ("rows", curve.rows, palette.accent),
        ("tokens", curve.tokens, palette.second),
    ):
        points = zip(lengths, (100 * shares).tolist(), strict=True)
        chart.add_line(points, colour, name, "right")
    _mark_max_len(chart, max_len, least, most)
    return chart


def _plot_padding(costs: Sequence[PaddingCost], palette: Palette) -> Chart:
    """Return the padding of batches by their size, drawn at random and of like length."""
    most = 100 * max(cost.random for cost in costs)
    ticks = [(float(place), str(cost.batch_size)) for place, cost in enumerate(costs)]
    x = Axis("rows per batch", -0.3, len(costs) - 0.7, ticks)
    chart = Chart(x, count_up("% padding", most), palette)
    for name, shares, colour in (
        ("random", [cost.random for cost in costs], palette.accent),
        ("of like length", [cost.of_like_length for cost in costs], palette.second),
    ):
        points = [(float(place), 100 * share) for place, share in enumerate(shares)]
        chart.add_line(points, colour, name, "left")
    return chart


def _percent(label: str) -> Axis:
    return Axis(label, 0, 101, [(float(value), str(value)) for value in range(0, 101, 20)])


def _is_near(max_len: int, least: int, most: int) -> bool:
    """Say whether a picture would not be empty up to ``max_len``."""
    return least <= max_len <= most * _NEAR


def _mark_max_len(chart: Chart, max_len: int, least: int, most: int) -> None:
    if _is_near(max_len, least, most):
        chart.add_mark(max_len, f"max_len {max_len:,}")
