"""Logs that keep the bodies of a call are read as the log that they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.errors import Rejected
from pipeline.examples.shapes import read_row

REQUEST: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "2+2?"}]}
RESPONSE: dict[str, Any] = {
    "object": "chat.completion",
    "choices": [{"message": {"role": "assistant", "content": "4"}, "finish_reason": "stop"}],
}
OTHER: dict[str, Any] = {**REQUEST, "messages": [{"role": "user", "content": "3+3?"}]}
LOG = {"id": "a", "request": REQUEST, "response": RESPONSE, "latency": 3}


@pytest.mark.parametrize("format", ["auto", "openai_log"])
@pytest.mark.parametrize("write", [dict, json.dumps])
@pytest.mark.parametrize(
    ("request_name", "response_name"),
    [
        ("request_body", "response_body"),
        ("requestBody", "responseBody"),
        ("request", "response_body"),
        ("request_body", "response"),
    ],
)
def test_bodies_read_as_the_log_of_the_call_with_the_same_keys_unread(
    format: str, write: Any, request_name: str, response_name: str
) -> None:
    row = {"id": "a", request_name: REQUEST, response_name: RESPONSE, "latency": 3}
    for name in row:
        if name.lower().endswith("body"):
            row[name] = write(row[name])
    assert read_row(row, format, "file:1") == read_row(LOG, "auto", "file:1")


@pytest.mark.parametrize(
    "row",
    [
        {"request": OTHER, "request_body": REQUEST, "response_body": RESPONSE},
        {"requestBody": OTHER, "request_body": REQUEST, "response_body": RESPONSE},
        {**LOG, "request_body": json.dumps(OTHER)},
        {**LOG, "response_body": "data: {}"},
    ],
)
def test_two_bodies_that_differ_are_ambiguous(row: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match=r"ambiguous_shape.*differ"):
        read_row(row, "auto", "file:1")


def test_a_body_that_says_the_log_once_more_changes_nothing_and_is_counted() -> None:
    read = read_row({**LOG, "request_body": json.dumps(REQUEST)}, "auto", "file:1")
    expected = read_row(LOG, "auto", "file:1")
    assert read.example == expected.example
    assert read.unread == expected.unread | {"request_body"}


@pytest.mark.parametrize("body", ["data: {}\n\ndata: [DONE]", "[1]", 3])
def test_a_body_that_is_no_object_is_refused_by_its_name(body: Any) -> None:
    with pytest.raises(Rejected, match="wrong_type: response_body: "):
        read_row({"request_body": REQUEST, "response_body": body}, "auto", "file:1")


def test_a_row_that_has_a_shape_keeps_it_beside_bodies() -> None:
    turns = [*REQUEST["messages"], {"role": "assistant", "content": "4"}]
    row = {"messages": turns, "request_body": REQUEST, "response_body": {"usage": 3}}
    assert read_row(row, "auto", "file:1").format == "openai"


def test_one_body_alone_is_no_call() -> None:
    with pytest.raises(Rejected, match="rename request_body to request, add response"):
        read_row({"request_body": REQUEST}, "auto", "file:1")
