"""Where a prompt ends in a rendering is found by a named way, or not at all."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.answer.seam import Seam, common_length, find_seam

CONTROL = re.compile(r"<[^<> ]+>")
PAIR = ("<think>", "</think>")


@given(st.text("ab"), st.text("ab"))
def test_the_common_length_is_the_longest_equal_start(first: str, second: str) -> None:
    length = common_length(first, second)
    assert first[:length] == second[:length]
    assert first[length : length + 1] != second[length : length + 1] or length == len(first) == len(
        second
    )


@given(st.text(), st.text())
def test_a_prefix_is_found_where_it_ends(prompt: str, rest: str) -> None:
    assert find_seam(prompt, prompt + rest, CONTROL, PAIR) == Seam("prefix", len(prompt), "")


@pytest.mark.parametrize(
    ("prompt", "full", "way", "rest"),
    [
        ("Q A:\n", "Q A: yes", "white_space", "yes"),
        ("Q\nA:", "Q    A: yes", "white_space", "yes"),
        ("<a><think>\n", "<a><think></think>yes", "white_space", "</think>yes"),
        ("<a><think>\n", "<a>yes", "think", "yes"),
        ("<a><think>\n</think>", "<a>yes", "think", "yes"),
        ("<a><think>", "<a><tool>yes", "think", "<tool>yes"),  # they share "<t"
        ("<a><think>", "<a></think>yes", "think", "</think>yes"),
    ],
)
def test_a_prompt_that_is_almost_a_prefix_is_found_by_a_named_way(
    prompt: str, full: str, way: str, rest: str
) -> None:
    seam = find_seam(prompt, full, CONTROL, PAIR)
    assert seam is not None
    assert (seam.way, full[seam.at :]) == (way, rest)


@pytest.mark.parametrize(
    ("prompt", "full", "pair"),
    [
        ("Be brief. Q A:", "Q A: yes", PAIR),
        ("<a><think>", "<a>yes", None),
        ("<a>Say <think>", "<a>yes", PAIR),
        ("Q A:", "", PAIR),
    ],
)
def test_any_other_difference_is_no_seam(
    prompt: str, full: str, pair: tuple[str, str] | None
) -> None:
    assert find_seam(prompt, full, CONTROL, pair) is None
