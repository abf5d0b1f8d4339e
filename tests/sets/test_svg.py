"""Charts: well-formed whatever the numbers are, nothing drawn beyond the frame, words at round values."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from pipeline.sets.svg import HEIGHT, WIDTH, Chart, Palette, count_up, double_up

PALETTE = Palette("#111111", "#222222", "#333333", "#444444", "#555555")
counts_of_bins = st.lists(st.integers(0, 10**9), min_size=1, max_size=40)


def numbers_in(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", text)]


@given(counts_of_bins, st.integers(1, 10**6), st.integers(1, 10**4))
def test_bars_stay_inside_the_chart(counts: list[int], least: int, step: int) -> None:
    edges = [least + step * number for number in range(len(counts) + 1)]
    chart = Chart(double_up("tokens", least, edges[-1]), count_up("rows", max(counts)), PALETTE)
    chart.add_bars(counts, edges, PALETTE.accent)
    svg = ElementTree.fromstring(chart.to_svg())
    (bars,) = (each for each in svg.iter("path") if each.get("fill") == PALETTE.accent)
    path = bars.attrib["d"]
    assert all(0 <= x <= WIDTH for x in numbers_in(" ".join(re.findall(r"H[\d.-]+", path))))
    assert all(0 <= y <= HEIGHT for y in numbers_in(" ".join(re.findall(r"V[\d.-]+", path))))


@given(st.integers(0, 10**12))
def test_whole_numbers_are_counted_in_few_even_steps_from_zero(most: int) -> None:
    values = [value for value, _ in count_up("rows", most).ticks]
    assert values[0] == 0
    assert 2 <= len(values) <= 7
    steps = {second - first for first, second in pairwise(values)}
    assert len(steps) == 1
    assert values[-1] <= max(1, most) < values[-1] + steps.pop()


@given(st.integers(1, 10**7), st.integers(1, 10**7))
def test_lengths_have_words_inside_their_axis(one: int, other: int) -> None:
    axis = double_up("tokens", min(one, other), max(one, other) + 1)
    assert all(0 <= axis.share_of(value) <= 1 for value, _ in axis.ticks)
    assert len(axis.ticks) <= 10


def test_words_of_a_chart_cannot_end_its_element() -> None:
    chart = Chart(double_up("</svg><b>", 1, 2), count_up("a & b", 1), PALETTE)
    chart.add_mark(1, "<i>")
    texts = [each.text for each in ElementTree.fromstring(chart.to_svg()).iter("text")]
    assert {"</svg><b>", "a & b", "<i>"} <= set(texts)
