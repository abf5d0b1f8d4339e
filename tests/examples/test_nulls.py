"""A null that can only mean "absent" is left out; a null that is a value stays."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.examples.nulls import drop_message_nulls, drop_tool_nulls

Row = dict[str, Any]


def test_a_null_key_of_a_message_is_no_key_and_null_content_stays() -> None:
    message = {
        "role": "assistant",
        "content": None,
        "name": None,
        "tool_calls": [
            {"id": None, "type": "function", "function": None},
            {"index": None, "function": {"name": "f", "arguments": {"x": None}, "strict": None}},
        ],
    }
    assert drop_message_nulls(message) == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function"},
            {"function": {"name": "f", "arguments": {"x": None}}},
        ],
    }


def test_a_null_in_a_tool_schema_stays_only_where_json_schema_has_null() -> None:
    properties = {
        "kept": {"type": "string", "default": None, "enum": ["a", None], "description": None},
        "enum": {"const": None, "items": None, "examples": [{"x": None}]},
        "gone": None,
        "default": None,
        "deep": {"type": "object", "properties": {"gone": None, "at": {"anyOf": [{"type": None}]}}},
    }
    tool = {
        "type": "function",
        "function": {"name": "f", "description": None, "parameters": {"properties": properties}},
    }
    assert drop_tool_nulls([tool]) == [
        {
            "type": "function",
            "function": {
                "name": "f",
                "parameters": {
                    "properties": {
                        "kept": {"type": "string", "default": None, "enum": ["a", None]},
                        "enum": {"const": None, "examples": [{"x": None}]},
                        "deep": {"type": "object", "properties": {"at": {"anyOf": [{}]}}},
                    }
                },
            },
        }
    ]


VALUES = st.recursive(
    st.booleans() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(["properties", "tool_calls", "function", "enum"]), VALUES))
def test_tools_and_messages_without_nulls_are_left_as_they_are(fields: Row) -> None:
    assert drop_tool_nulls([fields]) == [fields]
    assert drop_message_nulls(fields) == fields


def test_what_is_given_is_never_changed() -> None:
    call = {"id": None, "function": {"name": "f", "strict": None}}
    message = {"role": "assistant", "name": None, "tool_calls": [call]}
    tool = {"function": {"parameters": None}}
    before = repr((message, tool))
    drop_message_nulls(message)
    drop_tool_nulls([tool])
    assert repr((message, tool)) == before
