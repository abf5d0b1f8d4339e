"""Calls of ``/v1/responses``: their items become the messages that vLLM 0.33.0 makes of them.

``responses_golden.jsonl`` has requests, and what vLLM's own functions made of each: messages, tools and
template kwargs (``construct_input_messages``, ``construct_tool_dicts``, ``build_chat_params``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Rejected
from pipeline.examples.example import TrainingExample
from pipeline.examples.shapes import read_row

GOLDEN = [
    json.loads(line)
    for line in (Path(__file__).parent / "responses_golden.jsonl").read_text("utf-8").splitlines()
]
# What chat completions say in its own parameters, not in kwargs.
OF_THE_SERVER = {"add_generation_prompt", "continue_final_message"}
USER = {"role": "user", "content": "Which bus?"}
CALL = {"type": "function_call", "call_id": "c1", "name": "find", "arguments": "{}"}


def text(said: str, **changes: Any) -> dict[str, Any]:
    part = {"type": "output_text", "text": said, "annotations": []}
    return {"type": "message", "role": "assistant", "content": [part], **changes}


def thought(said: str) -> dict[str, Any]:
    return {"type": "reasoning", "content": [{"type": "reasoning_text", "text": said}]}


def read(row: dict[str, Any]) -> TrainingExample:
    found = read_row(row, "auto", "f:1")
    assert found.format == "responses"
    return found.example


def as_chat(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with its parts of text named as chat completions do."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [{"type": "text", "text": part["text"]} for part in content]
        return {**message, "content": parts}
    return message


@pytest.mark.parametrize("item", GOLDEN, ids=lambda item: item["name"])
def test_a_request_becomes_the_messages_that_the_server_makes(item: dict[str, Any]) -> None:
    example = read({"request": item["request"], "response": {"output": [text("Line 7.")]}})
    assert example.messages == [as_chat(message) for message in item["messages"]]
    tools = [tool["function"] for tool in item["tools"] or []]
    ours = [tool["function"] for tool in example.tools or []]
    assert ours == [{name: tool[name] for name in tool if tool[name] is not None} for tool in tools]
    kwargs = {name: item["kwargs"][name] for name in item["kwargs"].keys() - OF_THE_SERVER}
    assert example.chat_template_kwargs == kwargs
    assert example.continuation == {"role": "assistant", "content": "Line 7."}


def test_items_of_one_answer_are_one_continuation() -> None:
    example = read({"input": "Which bus?", "output": [thought("I look."), text("Wait."), CALL]})
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    assert example.continuation == {
        "role": "assistant",
        "reasoning": "I look.",
        "content": "Wait.",
        "tool_calls": [call],
    }


def test_calls_that_the_server_answered_itself_are_context_of_the_last_answer() -> None:
    result = {"type": "function_call_output", "call_id": "c1", "output": "7"}
    example = read({"input": "Which bus?", "output": [CALL, result, text("Line 7.")]})
    roles = [message["role"] for message in example.messages or []]
    assert roles == ["user", "assistant", "tool"]
    assert example.continuation == {"role": "assistant", "content": "Line 7."}


def test_a_conversation_of_items_alone_ends_with_its_continuation() -> None:
    example = read({"input": [USER, text("Line 7."), USER, text("Line 8.")]})
    assert [message["role"] for message in example.messages or []] == ["user", "assistant"] * 2


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"previous_response_id": "r"}, "previous_response_id: names a part of the prompt"),
        ({"output": [{"type": "reasoning", "encrypted_content": "x"}]}, "encrypted_content"),
        ({"output": [{"type": "web_search_call"}, text("a")]}, r"output\[0\].type"),
        ({"output": [text("a"), text("b")]}, r"output\[1\]: another answer follows"),
        ({"output": [text("a", status="incomplete")]}, "incomplete, so the model did not end it"),
        ({"status": "incomplete"}, "status: incomplete, so the model did not end this answer"),
        ({"truncation": "auto"}, "truncation: the server may have left items out"),
        ({"tools": [{"type": "web_search"}]}, r"tools\[0\].type"),
        ({"output": [text("a"), thought("late")]}, r"output\[1\]: behind items"),
        (
            {"output": [{"type": "reasoning", "summary": [{"text": "s"}]}, text("a")]},
            "a summary in place of what the model thought",
        ),
        ({"output": [text("a"), {**USER, "type": "message"}]}, "ends with another's message"),
        ({"input": [{"type": "input_image"}, USER], "output": [text("a")]}, r"input\[0\].type"),
    ],
)
def test_what_would_be_lost_is_refused_by_its_key(row: dict[str, Any], words: str) -> None:
    with pytest.raises(Rejected, match=words):
        read({"input": "Which bus?", "output": [text("Line 7.")], **row})


def test_a_row_of_another_shape_is_not_taken_for_a_call() -> None:
    alpaca = {"instruction": "Add.", "input": "2 3", "output": "5"}
    assert read_row(alpaca, "auto", "f:1").format == "alpaca"
