"""Lines that repeat messages are read as `parse_line` reads them, without reading those again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Rejected
from pipeline.examples import line_parser
from pipeline.examples.line_parser import LineParser
from pipeline.lines.json_text import parse_line

TEXTS = st.text('ab"\\]}[{,: é🙂', max_size=8)
ITEMS = st.recursive(
    st.none() | st.integers(-9, 99) | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["role", "messages", "]", '"']), inner, max_size=2)
    ),
    max_leaves=4,
)
TALKS = st.lists(ITEMS, max_size=4)


@pytest.fixture(autouse=True)
def short_lines_too() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(line_parser, "SHORT", 0)
        yield


def outcome_of(parse: Any, text: str) -> tuple[str, ...]:
    try:
        return (repr(parse(text)),)
    except Rejected as error:
        return error.code, error.reason, error.excerpt


def line_of(messages: list[Any], id_: str = "a", **more: Any) -> str:
    return json.dumps({"id": id_, "messages": messages, **more})


@st.composite
def files(draw: st.DrawFn) -> list[str]:
    """Lines whose messages repeat, grow, shrink or change, some with a character less or more."""
    talk, lines = draw(TALKS), list[str]()
    for number in range(draw(st.integers(2, 6))):
        talk = draw(
            st.sampled_from([talk, talk, talk[:1]]) | TALKS.map(talk.__add__) | TALKS, label="talk"
        )
        spaces = draw(st.sampled_from([None, (",", ":"), (" , ", " : ")]))
        before = draw(st.sampled_from([{}, {"id": number}, {"x": {}}, {"y": "\\]"}, {"z": 1e2}]))
        after = draw(st.sampled_from([{}, {"id": "]"}, {"messages ": [1]}, {"x": [[]]}]))
        line = json.dumps(
            {**before, "messages": talk, **after},
            ensure_ascii=draw(st.booleans()),
            separators=spaces,
        )
        place = draw(st.integers(0, len(line)))
        change = draw(st.sampled_from(["keep"] * 3 + ["cut", "insert"]))
        if change != "keep":
            added = draw(st.sampled_from(',]"[}{1')) if change == "insert" else ""
            line = line[:place] + added + line[place + (change == "cut") :]
        lines.append(line)
    return lines


@given(files())
def test_lines_are_read_as_each_of_them_alone(lines: list[str]) -> None:
    parser = LineParser()
    for line in lines:
        assert outcome_of(parser.parse, line) == outcome_of(parse_line, line)


def test_messages_that_a_line_repeats_are_those_of_the_line_before() -> None:
    parser, talk = LineParser(), [{"role": "user", "content": "Hi " * 9}, {"role": "assistant"}]
    first = parser.parse(line_of(talk, decision_idx=1))["messages"]
    second = parser.parse(line_of(talk, "b", decision_idx=2))["messages"]
    assert second is first
    longer = parser.parse(line_of([*talk, {"role": "user"}], "c"))["messages"]
    assert longer == [*talk, {"role": "user"}]
    assert longer[0] is first[0]
    assert parser.parse(line_of([*talk, {"role": "user"}, 1], "d"))["messages"][2] is longer[2]


def test_two_conversations_that_take_turns_are_both_kept() -> None:
    parser = LineParser()
    talks = [[{"role": "user", "content": name * 30}] for name in "ab"]
    seen = [parser.parse(line_of(talks[turn % 2]))["messages"] for turn in range(6)]
    assert seen[4] is seen[2] is seen[0]
    assert seen[5] is seen[3] is seen[1]


@pytest.mark.parametrize(
    "line",
    [
        '{"messages": [{"role": "user", "content": "Which bus?"}, ], "id": "b"}',
        '{"messages": [{"role": "user", "content": "Which bus?"}e5, "id": "b"}',
        '{"messages": [{"role": "user", "content": "Which bus?"}]e5, "id": "b"}',
        '{"messages": [{"role": "user", "content": "Which bus?"}], "messages": []}',
        '{"id": "b", "id": "c", "messages": [{"role": "user", "content": "Which bus?"}]}',
        '{"messages": [{"role": "user", "content": "Which bus?"}]',
        '{"messages": [{"role": "user", "content": "Which bus?"}]}}',
    ],
)
def test_a_bad_line_that_repeats_messages_is_a_reject(line: str) -> None:
    parser = LineParser()
    for id_ in "ab":
        parser.parse(
            f'{{"messages": [{{"role": "user", "content": "Which bus?"}}], "id": "{id_}"}}'
        )
    with pytest.raises(Rejected) as caught:
        parser.parse(line)
    assert caught.value.code == "bad_json"


def test_messages_inside_a_text_or_another_object_are_not_taken_for_the_lines_own() -> None:
    talk = [{"role": "user", "content": "Which bus?"}]
    nested = json.dumps({"request": {"messages": talk}, "messages": [1]})
    quoted = json.dumps({"id": f'"messages": {json.dumps(talk)}', "messages": [2]})
    parser = LineParser()
    for line in (line_of(talk), line_of(talk), nested, quoted, nested, quoted):
        assert parser.parse(line) == json.loads(line)
