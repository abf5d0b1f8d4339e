"""A row of no shape is told what to rename."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Rejected
from pipeline.examples.shapes import FORMATS, read_row, recognise_format
from pipeline.examples.shapes.nearest import describe_nearest

WORDS = (
    *("request_body", "requestBody", "response_body", "question", "query", "input", "answer"),
    *("response", "reply", "output", "Prompt", "prompt", "completion", "chosen", "rejected"),
    *("instruction", "context", "target", "dialogue", "conversation", "score"),
)


def refuse(row: dict[str, Any]) -> Rejected:
    with pytest.raises(Rejected) as caught:
        read_row(row, "auto", "file:1")
    return caught.value


@pytest.mark.parametrize(
    ("keys", "advice"),
    [
        ("id req resp", "openai_log (request, response): rename req to"),
        (
            "question answer",
            "trl (prompt, completion): rename question to prompt, rename answer to",
        ),
        ("prompt reply", "trl (prompt, completion): rename reply to completion"),
        ("prompt", "trl (prompt, completion): add completion, which it lacks"),
        ("prompt response rejected", "trl (prompt, chosen, rejected): rename response to chosen"),
        ("input output", "alpaca (instruction, output): rename input to instruction"),
        ("query question answer", "rename question or query to prompt"),
        ("id context", "own (context, continuation): add continuation, which it lacks"),
        ("type uuid sessionId message", "convert it with scripts/sessions_to_rows.py"),
        ("timestamp type payload", "convert it with scripts/sessions_to_rows.py"),
        ("dialogue", "openai (messages): rename dialogue to messages"),
    ],
)
def test_a_row_of_no_shape_is_told_the_nearest_and_what_to_rename(keys: str, advice: str) -> None:
    error = refuse(dict.fromkeys(keys.split(), "x"))
    assert error.code == "missing_field"
    assert advice in error.reason
    assert error.excerpt == str(sorted(keys.split()))
    assert "id: missing" not in str(error)


def test_keys_near_to_nothing_are_told_every_shape_in_one_line() -> None:
    reason = refuse({"id": "a", "score": 1, "messages": None}).reason
    assert all(name in reason for name in FORMATS)
    assert "\n" not in reason


@given(st.lists(st.sampled_from(WORDS), unique=True))
def test_the_order_of_keys_changes_no_advice(keys: list[str]) -> None:
    def name_trl(_: frozenset[str]) -> str:
        return "trl"

    assert describe_nearest(keys, name_trl) == describe_nearest(sorted(keys), name_trl)


@given(st.sets(st.sampled_from(WORDS), min_size=1, max_size=4))
def test_a_row_that_follows_the_advice_has_the_shape_that_it_named(keys: set[str]) -> None:
    row: dict[str, Any] = dict.fromkeys(keys, "x")
    try:
        recognise_format(row)
    except Rejected as error:
        named = re.search(r"nearest is (\w+) ", error.reason)
        if named is None:
            return
        for old, new in re.findall(r"rename (\S+)(?: or \S+)* to (\w+)", error.reason):
            row[new] = row.pop(old)
        for added in re.findall(r"add (\w+)(?: and (\w+))?", error.reason):
            row.update({key: "x" for key in added if key})
        assert recognise_format(row) == named[1]
