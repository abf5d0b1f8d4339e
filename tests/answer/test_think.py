"""How a prompt ends, and what of a think block a continuation must still say."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.answer import turn as think
from pipeline.answer.turn import (
    ThinkState,
    drop_supplied,
    has_stray_mark,
    read_think_state,
    spell_closing,
    split_closing,
    without_empty_block,
)

PAIR = ("<think>", "</think>")
HEADER = re.compile(r"<\|im_start\|>|<\|im_end\|>")
OPEN = ThinkState("open", "<think>\n")
CLOSED = ThinkState("closed", "<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("prompt", "state"),
    [
        ("<|im_start|>assistant\n", ThinkState("none")),
        ("<|im_start|>assistant\n<think>\n", OPEN),
        ("<|im_start|>assistant\n<think>\nOkay", ThinkState("open", "<think>\nOkay")),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", CLOSED),
        ("<|im_start|>assistant\n<think>a</think>\n", ThinkState("closed", "</think>\n")),
        ("<|im_start|>assistant\n</think>", ThinkState("closed", "</think>")),
        ("<|im_start|>assistant\n<think>a</think>Left", ThinkState("none")),
        ("<|im_start|>user\n<think><|im_end|>\n<|im_start|>assistant\n", ThinkState("none")),
    ],
)
def test_only_the_last_turn_says_how_a_prompt_ends(prompt: str, state: ThinkState) -> None:
    assert read_think_state(prompt, PAIR, HEADER) == state


@given(
    st.lists(
        st.sampled_from(
            [
                *PAIR,
                "<|im_start|>",
                "<|im_end|>",
                "<|im_",
                "<thi",
                "a",
                " ",
                "\n",
                "a" * 40,
                " " * 40,
            ]
        ),
        max_size=14,
    ).map("".join),
    st.sampled_from([HEADER, re.compile(r"\S"), re.compile("(?!)")]),
)
@example("a<think>     ", re.compile(r"\S"))
@example("a<think>" + " " * 100 + "</think>", HEADER)
def test_the_end_alone_says_what_the_whole_prompt_says(prompt: str, later: re.Pattern[str]) -> None:
    states: list[ThinkState] = []
    for tail in (8, 64, 10**6):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(think, "TAIL", tail)
            states.append(read_think_state(prompt, PAIR, later))
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize(
    ("text", "state", "rest"),
    [
        ("<think>\nso", OPEN, "so"),
        ("<think>so", OPEN, "so"),
        ("<think>\n\nso", OPEN, "\nso"),
        ("so", OPEN, "so"),
        ("<think>\n\n</think>\n\nLeft.", CLOSED, "Left."),
        ("<think>\n\n</think>Left.", CLOSED, "Left."),
        ("<think>\nso\n</think>\n\nLeft.", CLOSED, "<think>\nso\n</think>\n\nLeft."),
        ("</think>Left.", ThinkState("closed", "</think>"), "Left."),
        ("<think>\nso", ThinkState("none"), "<think>\nso"),
    ],
)
def test_a_text_says_again_only_what_the_prompt_has_not(
    text: str, state: ThinkState, rest: str
) -> None:
    assert drop_supplied(text, state, PAIR) == rest


@pytest.mark.parametrize(
    ("text", "state", "is_stray"),
    [
        ("so\n</think>Left.", OPEN, False),
        ("Left.", OPEN, False),
        ("<think>so</think>", OPEN, True),
        ("a</think>b</think>", OPEN, True),
        ("<think>so</think>Left.", ThinkState("none"), False),
        ("<think>so</think>Left.", CLOSED, True),
        ("so</think>Left.", CLOSED, True),
    ],
)
def test_a_mark_is_stray_where_the_prompts_end_does_not_expect_it(
    text: str, state: ThinkState, is_stray: bool
) -> None:
    assert has_stray_mark(text, state, PAIR) is is_stray


def test_a_closing_takes_the_white_space_that_stands_around_it() -> None:
    assert split_closing("\n</think>\n\nLeft.", "</think>") == ("\n</think>\n\n", "Left.")
    assert split_closing("Left.", "</think>") is None
    assert spell_closing("<think>\n", PAIR) == "\n</think>\n\n"
    assert spell_closing("<think>", PAIR) == "</think>"
    assert spell_closing("<think>\nOkay", PAIR) == "\n</think>\n\n"


def test_an_empty_block_says_nothing_of_an_opening() -> None:
    assert without_empty_block("\n<think></think>\n", PAIR) == ""
    assert without_empty_block("</think><a>", PAIR) == "<a>"
    assert without_empty_block("<a>", None) == "<a>"
