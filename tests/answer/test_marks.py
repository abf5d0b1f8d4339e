"""Control marks in context texts are found and flagged, fast, and nothing else is."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.answer.marks import (
    WELL_KNOWN_MARKS,
    MarkSearch,
    find_text_flags,
    has_stray_think_mark,
    pattern_of,
)

TOKENS = frozenset({"<|im_start|>", "<|im_end|>", "<think>", "</think>", "<unused7>"})
CONTROL = ("control_token_in_text",)


@given(st.sets(st.text("ab<|>", min_size=1, max_size=5), max_size=8), st.text("ab<|>", max_size=30))
def test_a_pattern_finds_what_a_search_for_each_mark_finds(marks: set[str], text: str) -> None:
    found = pattern_of(marks).search(text)
    places = [text.find(mark) for mark in marks if mark in text]
    assert (found.start() if found else None) == (min(places) if places else None)
    if found:
        longest = max((mark for mark in marks if text.startswith(mark, found.start())), key=len)
        assert found[0] == longest


@given(st.sets(st.text("ab<|[", min_size=1, max_size=4), max_size=8), st.text("ab<|[", max_size=30))
def test_a_mark_is_found_where_a_search_for_each_finds_one(marks: set[str], text: str) -> None:
    found = MarkSearch(marks).find_in(text)
    assert found in marks if any(mark in text for mark in marks) else found is None
    assert found is None or found in text


def test_what_was_found_in_a_message_is_remembered_with_the_message() -> None:
    asked, known = {"role": "user", "content": "print <|im_end|>"}, {}
    assert find_text_flags([asked], TOKENS, known=known) == CONTROL
    plain = {"role": "user", "content": "print"}
    assert find_text_flags([plain], TOKENS, known=known) == ()
    assert find_text_flags([plain, asked], TOKENS, known=known) == CONTROL
    assert [message for message, _ in known.values()] == [asked, plain]


@pytest.mark.parametrize("role", ["user", "system", "developer", "tool"])
@pytest.mark.parametrize("mark", ["<|im_end|>", "<unused7>", "</s>", "[INST]", "<think>"])
def test_a_control_mark_in_somebodys_text_is_flagged(role: str, mark: str) -> None:
    text = f"please print {mark} for me"
    assert find_text_flags([{"role": role, "content": text}], TOKENS) == CONTROL
    parts = [{"type": "text", "text": "hello"}, {"type": "text", "text": text}]
    assert find_text_flags([{"role": role, "content": parts}], TOKENS) == CONTROL


@pytest.mark.parametrize(
    "text",
    ["please print <|im_end for me", "a < b and b > c", "", "\n\n", "<table><td>1</td></table>"],
)
def test_text_that_is_no_control_mark_is_not_flagged(text: str) -> None:
    tokens = TOKENS | {"\n\n", "▁▁", "<table>", "<td>", "</td>"}
    messages = [{"role": "user", "content": text}, {"role": "user", "content": None}]
    assert find_text_flags(messages, tokens) == ()


def test_an_assistants_own_marks_are_flagged_only_where_thought_is_torn() -> None:
    whole = {"role": "assistant", "content": "<think>\na\n</think>\n\nx <|im_end|>"}
    torn = {"role": "assistant", "content": "no tags here, but the word </think> appears"}
    assert find_text_flags([whole], TOKENS) == ()
    assert find_text_flags([whole, torn], TOKENS) == ("think_in_text",)


def test_a_raw_context_is_flagged_for_foreign_marks_only() -> None:
    own = "<|im_start|>user\nWhich door?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert find_text_flags([], TOKENS, raw_context=own) == ()
    for foreign in ("<s>", "<bos>", "<|begin_of_text|>"):
        assert find_text_flags([], TOKENS, raw_context=foreign + own) == CONTROL
        assert find_text_flags([], TOKENS | {foreign}, raw_context=foreign + own) == ()


@pytest.mark.parametrize(
    ("text", "is_stray"),
    [
        ("<think>a</think>b<think>c</think>", False),
        ("</think>", True),
        ("<think>a", True),
        ("<think><think>a</think>", True),
        ("[THINK]a</think>", True),
        ("Here are my reasoning steps: none", False),
    ],
)
def test_think_marks_must_open_and_close_in_turn(text: str, is_stray: bool) -> None:
    assert has_stray_think_mark(text) is is_stray


def test_the_case_file_of_control_tokens_is_flagged_but_for_the_broken_tag(shared: Path) -> None:
    lines = (shared / "cases/special_tokens_in_user.jsonl").read_bytes().split(b"\n")
    flags = {
        case["id"]: find_text_flags(case["messages"][:1], TOKENS)
        for case in map(json.loads, filter(None, lines))
    }
    assert flags.pop("u7") == ()
    assert set(flags.values()) == {CONTROL}


def test_thousands_of_control_tokens_cost_no_more_than_a_few() -> None:
    many = frozenset({*(f"<unused{index}>" for index in range(6000)), *WELL_KNOWN_MARKS})
    message = {"role": "user", "content": "<p>if a < b then c</p>\n" * 2000}
    seconds: list[float] = []
    for tokens in (TOKENS, many):
        find_text_flags([message], tokens)
        start = time.perf_counter()
        assert find_text_flags([message], tokens) == ()
        seconds.append(time.perf_counter() - start)
    assert seconds[1] < 5 * seconds[0] + 0.01
