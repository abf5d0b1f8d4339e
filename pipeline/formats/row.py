"""What the shapes ask of a row: a field that must be there, a name for the row, nothing but text.

Field names stand in a refusal as the row has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pipeline.errors import Rejected
from pipeline.fields import read_id, read_json, read_messages, read_tools
from pipeline.server import Message

Row = Mapping[str, Any]
"""One JSON object of an input file."""

MEDIA_KEYS: Final = ("images", "image", "videos", "video", "audios", "audio")
"""Columns of files beside the text (TRL's vision sets, LLaMA-Factory's multimodal sets)."""

PREFERENCE_LABELS: Final = ("label", "kto_tag")
"""Unpaired preference (TRL, LLaMA-Factory): false says that the answer is the worse one."""


def read_name(row: Row, position: str) -> str:
    """Return the row's ``id``, or its position where the shape has no id."""
    return position if row.get("id") in (None, "") else read_id(row)


def require(row: Row, name: str, expected: str) -> Any:
    """Return ``row[name]``; raises `Rejected` (``missing_field``) where it is absent or null."""
    value = row.get(name)
    if value is None:
        raise Rejected("missing_field", f"{name}: missing; expected {expected}", sorted(row))
    return value


def require_text(row: Row, name: str, expected: str) -> str:
    """Return a text that is there; raises `Rejected` (``missing_field``, ``wrong_type``)."""
    value = require(row, name, expected)
    if not isinstance(value, str):
        raise Rejected("wrong_type", f"{name}: expected text", value)
    return value


def read_chat(value: Any, name: str) -> list[Message]:
    """Return messages, from JSON text too.

    Raises `Rejected` (``wrong_type``) for the form of calls that ``tool_calls`` replaced, which
    servers leave out of the prompt without a word.
    """
    messages = read_messages(read_json(value, name), name)
    for index, message in enumerate(messages):
        if "function_call" in message or message.get("role") == "function":
            raise Rejected(
                "wrong_type",
                f"{name}[{index}]: a function_call, the old form of tool_calls; "
                "expected tool_calls, and results in messages of role tool",
                message,
            )
    return messages


def read_function_tools(value: Any) -> list[dict[str, Any]] | None:
    """Return tools, each bare function wrapped as OpenAI's API has it; empty text is no tool.

    LLaMA-Factory's ``tools`` column is JSON text of a list of bare functions.
    """
    tools = read_tools(value or None)
    if tools is None:
        return None
    return [
        tool if "function" in tool else {"type": "function", "function": tool} for tool in tools
    ]


def refuse_media(row: Row) -> None:
    """Raise `Rejected` (``unsupported_content``) for a row with pictures, sound or film beside it."""
    for name in MEDIA_KEYS:
        if row.get(name):
            raise Rejected(
                "unsupported_content", f"{name}: only text can be rendered; leave such rows out"
            )


def refuse_worse(row: Row) -> None:
    """Raise `Rejected` (``missing_field``) for an answer that is labelled as the worse one."""
    for name in PREFERENCE_LABELS:
        if row.get(name) is False:
            raise Rejected(
                "missing_field",
                f"{name}: false, so the row's answer is the worse one; "
                "expected a better one to train on: leave such rows out",
            )
