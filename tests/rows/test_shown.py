"""What a prompt leaves out of its messages is flagged, and nothing else is."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.rows.shown import find_unshown, holds_text
from tests.own_templates import CHATML, SYSTEM_MOVES, THOUGHT_DELETED, USER, call_of, prompt_of

Message = dict[str, Any]


def said(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


def place_in(prompt: str, *messages: Message) -> int | None:
    return find_unshown(messages, prompt).place


def test_a_text_that_stands_once_is_not_two_messages() -> None:
    twice = [said("user", "Oslo"), said("assistant", "Rain."), said("user", "Oslo")]
    assert place_in("user: Oslo\nRain.\nuser: Oslo", *twice) is None
    assert place_in("user: Oslo\nRain.", *twice) == 2
    assert place_in("Rain.\nuser: Oslo", *twice) is not None


def test_a_text_inside_another_message_is_no_place_of_its_own() -> None:
    messages = [USER, said("ipython", "Oslo"), said("user", "And Oslo?")]
    assert place_in("Which door?\nAnd Oslo?", *messages) is not None
    assert place_in("Which door?\nOslo\nAnd Oslo?", *messages) is None


def test_a_message_may_be_moved() -> None:
    messages = [said("system", "Be kind."), USER, said("assistant", "Left."), said("user", "Sure?")]
    prompt = prompt_of(SYSTEM_MOVES, messages)
    assert prompt.index("Be kind.") > prompt.index("Left.")
    assert place_in(prompt, *messages) is None
    ended = [*messages[:3], said("assistant", "Or right.")]
    assert place_in(prompt_of(SYSTEM_MOVES, ended), *ended) == 0


@pytest.mark.parametrize(
    "spell",
    [
        str.strip,
        json.dumps,
        lambda text: json.dumps(text, ensure_ascii=False),
        repr,
        lambda text: text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
        lambda text: re.sub(r"\s+", " ", text),
    ],
)
def test_the_spellings_of_templates_show_a_text(spell: Any) -> None:
    text = ' He said:\n\t"é < ü & more"\n  twice. '
    prompt = f"<tool>{spell(text)}</tool>"
    assert place_in(prompt, said("tool", text)) is None
    assert holds_text(prompt, text)
    assert place_in("<tool></tool>", said("tool", text)) == 0


def test_thought_that_a_template_deletes_is_no_message_text() -> None:
    thought = "<think>Left or right?</think>\n\nLeft."
    messages = [USER, {**said("assistant", thought), "reasoning": "Hm."}, said("user", "Sure?")]
    prompt = prompt_of(THOUGHT_DELETED, messages)
    assert "Left or right?" not in prompt
    assert place_in(prompt, *messages) is None
    assert place_in(prompt.replace("Left.", ""), *messages) == 1


def test_calls_are_part_of_what_a_message_says() -> None:
    messages = [USER, call_of(door="red", times=2), said("tool", "open")]
    assert place_in(prompt_of(CHATML, messages), *messages) is None
    assert place_in("Which door?\nopen_door\nopen", *messages) == 1
    assert place_in("Which door?\nopen", *messages) == 1


def test_parts_are_looked_for_one_by_one() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "thinking", "thinking": "two"}, "three"]
    assert place_in("one\nthree", said("user", parts)) is None
    assert place_in("one", said("user", parts)) == 0


def test_a_prompt_shows_a_request_or_it_does_not() -> None:
    assert find_unshown([USER], "Which door?").has_request
    assert not find_unshown([USER], "door").has_request
    assert not find_unshown([said("assistant", "Left.")], "Left.").has_request


def test_a_suspect_is_named_before_the_others() -> None:
    messages = [USER, said("tool", "grey"), said("referee", "Play on."), USER]
    assert find_unshown(messages, "Which door? Which door?").place == 1
    assert find_unshown(messages, "Which door? Which door?", [2]).place == 2


WORDS = st.text('ab \n<"é&', max_size=6)
TALKS = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), WORDS),
    min_size=1,
    max_size=8,
)


@given(TALKS)
@settings(max_examples=300)
def test_a_template_that_shows_everything_is_never_flagged(talk: list[tuple[str, str]]) -> None:
    messages = [said(role, text) for role, text in talk]
    assert place_in(prompt_of(CHATML, messages), *messages) is None


@given(TALKS, st.data())
@settings(max_examples=200)
def test_a_message_that_is_left_out_is_flagged(talk: list[tuple[str, str]], data: Any) -> None:
    messages = [said(role, f"{text} {place}.") for place, (role, text) in enumerate(talk)]
    gone = data.draw(st.integers(0, len(messages) - 1))
    prompt = prompt_of(CHATML, [*messages[:gone], *messages[gone + 1 :]])
    assert place_in(prompt, *messages) == gone


@given(TALKS, st.sets(st.integers(0, 7)))
@settings(max_examples=200)
def test_contexts_of_one_talk_are_read_alike_alone_and_together(
    talk: list[tuple[str, str]], gone: set[int]
) -> None:
    messages = [said(role, text) for role, text in talk]
    shown = [message for place, message in enumerate(messages) if place not in gone]
    texts: dict[int, Any] = {}
    readings: dict[int, Any] = {}
    for count in range(1, len(messages) + 1):
        kept = [message for message in messages[:count] if any(message is each for each in shown)]
        prompt = prompt_of(CHATML, kept)
        together = find_unshown(messages[:count], prompt, (), texts, readings, messages)
        assert together == find_unshown(messages[:count], prompt)
