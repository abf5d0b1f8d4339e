"""Rows of other tools are read as the messages that they are, or refused with the key."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Rejected
from pipeline.examples.foreign_turns import name_spelling, respell_turns
from pipeline.examples.shapes import ReadRow, read_row
from tests.conftest import ROOT

Row = dict[str, Any]
Message = dict[str, Any]

USER: Message = {"role": "user", "content": "Rain in Oslo?"}
ANSWER: Message = {"role": "assistant", "content": "Yes, rain."}
RESULT: Message = {"role": "tool", "content": "rain", "tool_call_id": "t1"}
OSLO = {"city": "Oslo"}


def asking(**more: Any) -> Message:
    call = {"type": "function", "function": {"name": "weather", "arguments": OSLO}, **more}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


TALK = [USER, ANSWER]
CALLING = [USER, asking(id="t1"), RESULT, ANSWER]

LANGCHAIN_CALL = {"name": "weather", "args": OSLO, "id": "t1", "type": "tool_call"}
# What LangChain's messages have beside what they say (`model_dump`).
LANGCHAIN = {"additional_kwargs": {}, "response_metadata": {}, "name": None, "id": None}


def constructed(kind: str, **kwargs: Any) -> Row:
    path = ["langchain", "schema", "messages", kind]
    return {"lc": 1, "type": "constructor", "id": path, "kwargs": {**LANGCHAIN, **kwargs}}


# A line of each shape, the shape that the summary counts, and what a server would have been sent.
GOLDEN: list[tuple[str, Row, list[Message]]] = [
    # WildChat: allenai/WildChat-1M, dataset card.
    (
        "conversation as sharegpt",
        {
            "conversation_hash": "h",
            "model": "m",
            "conversation": [
                {**each, "language": "English", "toxic": False, "redacted": False, "header": {}}
                for each in TALK
            ],
            "turn": 1,
        },
        TALK,
    ),
    # LMSYS-Chat-1M: lmsys/lmsys-chat-1m, dataset card.
    ("conversation as sharegpt", {"conversation_id": "l1", "conversation": TALK, "turn": 1}, TALK),
    ("sharegpt", {"conversations": TALK}, TALK),
    ("sharegpt", {"conversations": json.dumps(TALK)}, TALK),
    ("sharegpt", {"conversations": CALLING}, CALLING),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "Human", "value": "Rain in Oslo?"},
                {"from": "tool_call", "value": json.dumps({"name": "weather", "arguments": OSLO})},
                {"from": "tool_response", "value": "rain"},
                {"from": "chatgpt", "value": "Yes, rain."},
            ]
        },
        [USER, asking(), {"role": "tool", "content": "rain"}, ANSWER],
    ),
    (
        "from+value as openai",
        {
            "messages": [
                {"from": "human", "value": "Rain in Oslo?"},
                {"from": "gpt", "value": "Yes, rain."},
            ]
        },
        TALK,
    ),
    (
        "roles as openai",
        {"messages": [{**USER, "role": "User"}, {**ANSWER, "role": "Chatbot"}]},
        TALK,
    ),
    # LangChain: `model_dump`, `messages_to_dict`, `dumpd`.
    (
        "type+content as openai",
        {
            "messages": [
                {"type": "human", "content": "Rain in Oslo?", **LANGCHAIN},
                {"type": "ai", "content": "", **LANGCHAIN, "tool_calls": [LANGCHAIN_CALL]},
                {"type": "tool", "content": "rain", "tool_call_id": "t1", "status": "success"},
                {"type": "ai", "content": "Yes, rain.", **LANGCHAIN, "tool_calls": []},
            ]
        },
        CALLING,
    ),
    (
        "type+data as openai",
        {
            "messages": [
                {"type": "human", "data": {"type": "human", "content": "Rain in Oslo?"}},
                {"type": "ai", "data": {**LANGCHAIN, "type": "ai", "content": "Yes, rain."}},
            ]
        },
        TALK,
    ),
    (
        "lc as openai",
        {
            "messages": [
                constructed("HumanMessage", content="Rain in Oslo?", type="human"),
                constructed(
                    "AIMessage",
                    content="",
                    tool_calls=[LANGCHAIN_CALL],
                    additional_kwargs={"tool_calls": asking(id="t1")["tool_calls"]},
                ),
                constructed("ToolMessage", content="rain", tool_call_id="t1"),
                constructed("AIMessage", content="Yes, rain.", type="ai"),
            ]
        },
        CALLING,
    ),
]


def read(row: Row, format: str = "auto") -> ReadRow:
    return read_row(row, format, "file:1")


def refuse(row: Row) -> Rejected:
    with pytest.raises(Rejected) as caught:
        read(row)
    return caught.value


def said(found: ReadRow) -> list[Message]:
    """Return the context and the answer, without what no server reads of a message."""
    example = found.example
    answer = example.continuation
    spoken = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    kept = ("role", "content", "tool_calls", "tool_call_id", "reasoning_content", "name")
    return [
        {key: message[key] for key in kept if message.get(key) is not None}
        for message in [*(example.messages or [])[: example.decision_idx], spoken]
    ]


@pytest.mark.parametrize(("format", "row", "messages"), GOLDEN, ids=lambda value: str(value)[:60])
def test_a_line_of_each_shape_is_read_as_its_messages(
    format: str, row: Row, messages: list[Message]
) -> None:
    found = read(json.loads(json.dumps(row)))
    assert (found.format, said(found)) == (format, messages)


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        (
            {"conversation": [{"role": "user", "content": "q"}, {"role": "narrator", "content": "a"}]},
            "wrong_type",
            "conversations[1].role: expected one of human",
        ),
        ({"conversation": [{"human": "q", "assistant": "a"}]}, "missing_field", "[0].role: missing"),
        (
            {"messages": [USER, {"type": "ai", "data": {"type": "human", "content": "a"}}]},
            "ambiguous_shape",
            "messages[1].type: another",
        ),
        (
            {"messages": [USER, {"type": "ai", "content": "a", "invalid_tool_calls": [{"id": "t"}]}]},
            "unsupported_content",
            "messages[1].invalid_tool_calls",
        ),
        (
            {"messages": [USER, {"type": "ai", "content": "a", "tool_calls": [{"name": "w"}]}]},
            "wrong_type",
            "messages[1].tool_calls[0]: expected the name and the arguments",
        ),
        (
            {"messages": [USER, {"type": "ai", "content": "a", "tool_calls": [{**LANGCHAIN_CALL, "x": 1}]}]},
            "wrong_type",
            "messages[1].tool_calls[0].x: a call cannot say this",
        ),
        (
            {
                "messages": [
                    {"type": "human", "content": "q"},
                    {"type": "ai", "content": "a", "response_metadata": {"finish_reason": "length"}},
                ]
            },
            "missing_field",
            "with a weight other than 0",
        ),
        ({"messages": [{"source": "user", "content": "q", "type": "TextMessage"}]}, "missing_field", "role"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_what_is_lossy_or_unsure_is_refused_with_its_key(row: Row, code: str, words: str) -> None:
    error = refuse(row)
    assert (error.code, words in error.reason) == (code, True), str(error)


def test_a_row_that_is_refused_under_our_names_says_which_it_was_read_with() -> None:
    error = refuse({"conversation": [{"role": "user", "content": "q"}]})
    assert error.reason.endswith("(read with conversation under our names)")


def test_a_conversation_that_is_a_name_or_stands_beside_messages_is_no_list_of_turns() -> None:
    named = read({"messages": TALK, "conversation": "c7"})
    assert (named.format, named.example.conversation) == ("openai", "c7")
    other = [{"role": "user", "content": "Else?"}, {"role": "assistant", "content": "No."}]
    assert refuse({"messages": TALK, "conversation": other}).code == "ambiguous_shape"


def test_the_id_of_a_conversation_beside_its_messages_is_counted_and_no_list_of_turns() -> None:
    assert read({"messages": TALK, "conversation_id": "l1"}).unread == {"conversation_id"}


TEXTS = st.text(min_size=1).filter(str.strip)


@given(
    texts=st.lists(TEXTS, min_size=2, max_size=6),
    spelling=st.sampled_from(
        [
            lambda role, text: {"from": {"user": "human"}.get(role, "gpt"), "value": text},
            lambda role, text: {"type": {"user": "human"}.get(role, "ai"), "content": text},
            lambda role, text: {"role": role.upper(), "content": text},
            lambda role, text: {"role": role, "parts": [{"type": "text", "content": text}]},
            lambda role, text: {"role": role, "content": "", "parts": [{"text": text}]},
            lambda role, text: constructed(
                "HumanMessage" if role == "user" else "AIMessageChunk", content=text
            ),
        ]
    ),
)
def test_any_spelling_of_a_conversation_is_read_as_that_conversation(
    texts: list[str], spelling: Any
) -> None:
    roles = ["user", "assistant"] * 3
    spelled = [spelling(role, text) for role, text in zip(roles, texts, strict=False)]
    assert all(map(name_spelling, spelled))
    for message, role, text in zip(respell_turns(spelled, "turns"), roles, texts, strict=False):
        assert (message["role"], message["content"]) == (role, text)


def test_each_line_of_the_table_on_the_page_of_formats_is_read() -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\|.*\| `(\{.*\})` \|$", page, re.MULTILINE)
    assert len(lines) >= 5
    for line in lines:
        assert " as " in read(json.loads(line)).format, line
