"""The fields of an example, read from JSON values: the checked value, or a reject that names it.

``name`` is what the input calls the field, so that a refusal speaks the language of its file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, cast

from pipeline.errors import Rejected
from pipeline.foreign_messages import check_message
from pipeline.nulls import drop_message_nulls, drop_tool_nulls
from pipeline.server import Message
from pipeline.source.json_lines import parse_value

_ID_LIMIT: Final = 2**31
"""Token ids are saved as int32."""


def read_id(values: Mapping[str, Any]) -> str:
    """Return the id as text: text as it is, a whole number as its digits.

    Raises `Rejected` (``missing_field`` or ``wrong_type``).
    """
    value = values.get("id")
    if value is None or value == "":
        raise Rejected(
            "missing_field", "id: missing or empty; expected text that names the example"
        )
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise Rejected("wrong_type", "id: expected text or a whole number", value)


def read_text(values: Mapping[str, Any], name: str) -> str:
    """Return a text; empty where there is none."""
    value = values.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Rejected("wrong_type", f"{name}: expected text", value)
    return value


def read_json(value: Any, name: str) -> Any:
    """Return ``value``, read as JSON where it is text: how nested data is kept in a table's cell."""
    if not isinstance(value, str):
        return value
    try:
        return parse_value(value)
    except Rejected as error:
        raise Rejected(
            "wrong_type", f"{name}: its text is not JSON ({error.reason})", value
        ) from error


def read_messages(value: Any, name: str) -> list[Message]:
    """Return messages, without keys that are null (`pipeline.nulls`); at least one.

    What a server would not see of a message is refused (`pipeline.foreign_messages`).
    """
    if not isinstance(value, list):
        raise Rejected("wrong_type", f"{name}: expected a list of messages", value)
    messages: list[Message] = []
    listed: list[Any] = value
    for index, message in enumerate(listed):
        if not isinstance(message, dict):
            raise Rejected("wrong_type", f"{name}[{index}]: expected a message object", message)
        fields: Message = message
        if fields.get("content") == []:
            # A server renders it as nothing; in a log it is a lost content.
            reason = "an empty list; expected text, parts, or null beside tool calls"
            raise Rejected("wrong_type", f"{name}[{index}].content: {reason}")
        kept = drop_message_nulls(fields)
        check_message(kept, f"{name}[{index}]")
        messages.append(kept)
    if not messages:
        raise Rejected("empty_context", f"{name}: the list is empty; expected at least one message")
    return messages


def split_weights(messages: list[Message], name: str) -> tuple[list[Message], list[float] | None]:
    """Return the messages without their ``weight``, and the weights where one leaves out a turn.

    OpenAI's fine-tuning guide: an assistant message of weight 0 is context, never trained.
    """
    if not any("weight" in message for message in messages):
        return messages, None
    weights = [1.0] * len(messages)
    for index, message in enumerate(messages):
        weight = message.get("weight", 1)
        if type(weight) not in (int, float) or weight not in (0, 1):
            raise Rejected("wrong_type", f"{name}[{index}].weight: expected 0 or 1", weight)
        if message.get("role") == "assistant":
            weights[index] = float(weight)
    bare = [{key: message[key] for key in message if key != "weight"} for message in messages]
    return bare, weights if 0.0 in weights else None


def read_continuation(value: Any, name: str) -> str | Message:
    """Return a continuation: text, or an assistant message with its role said."""
    if isinstance(value, str):
        if not value:
            raise Rejected(
                "empty_continuation", f"{name}: empty text; expected what the model should say"
            )
        return value
    if isinstance(value, dict):
        message = cast("Message", value)
        if message.get("role", "assistant") != "assistant":
            raise Rejected("wrong_type", f"{name}.role: expected assistant", message.get("role"))
        kept = drop_message_nulls({"role": "assistant", **message})
        check_message(kept, name)
        return kept
    raise Rejected("wrong_type", f"{name}: expected text or an assistant message", value)


def read_token_ids(value: Any, name: str) -> list[int]:
    """Return token ids: whole numbers of at least 0 that an int32 holds.

    Raises `Rejected` (``bad_ids``).
    """
    if not isinstance(value, list):
        raise Rejected("bad_ids", f"{name}: expected a list of token ids", value)
    ids = cast("list[Any]", value)
    # `type`, not `isinstance`: true is an int, and both run over the list at the speed of C.
    if not ids or set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) >= _ID_LIMIT:
        wrong = next((id_ for id_ in ids if type(id_) is not int or not 0 <= id_ < _ID_LIMIT), ids)
        raise Rejected(
            "bad_ids", f"{name}: expected whole numbers from 0 to {_ID_LIMIT - 1}", wrong
        )
    return ids


def read_memories(value: Any) -> list[str]:
    """Return the memories; one text is a list of one."""
    if value is None or value == []:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in cast("list[Any]", value)):
        return cast("list[str]", value)
    raise Rejected("wrong_type", "memories: expected a list of texts", value)


def read_tools(value: Any, name: str = "tools") -> list[dict[str, Any]] | None:
    """Return the tools, from JSON text too, without nulls (`pipeline.nulls`); None for no tool."""
    listed = read_json(value, name)
    if listed is None:
        return None
    if isinstance(listed, list):
        tools = cast("list[Any]", listed)
        if all(isinstance(item, dict) for item in tools):
            return drop_tool_nulls(tools) or None
    raise Rejected("wrong_type", f"{name}: expected a list of tool objects", value)


def read_kwargs(value: Any) -> dict[str, Any]:
    """Return the template kwargs; a null counts as not given."""
    if value is None:
        return {}
    if isinstance(value, dict):
        kwargs = cast("dict[str, Any]", value)
        return {name: each for name, each in kwargs.items() if each is not None}
    raise Rejected("wrong_type", "chat_template_kwargs: expected an object", value)


def read_weight(value: Any) -> float:
    """Return the example's weight, 1.0 where there is none."""
    if value is None:
        return 1.0
    # Stored as float32, so a number that overflows it is refused here rather than saved as inf.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and 0 <= value <= 3.4e38 and math.isfinite(value):
        return float(value)
    raise Rejected("wrong_type", "weight: expected a number of at least 0", value)
