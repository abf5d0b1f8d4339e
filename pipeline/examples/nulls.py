"""Nulls that stand for absent keys.

Arrow gives every object in one place the same keys and writes null where an object lacks one, so
whatever went through Parquet, pandas or `datasets` has keys that the request never had, and a
template prints them. A null is left out where it can say nothing but "absent":

- a key of a message, of a tool call or of its function. ``content`` stays, because OpenAI's own
  logs spell a message that only calls tools with ``"content": null``;
- a keyword of a tool's schema and a property without a schema, because JSON Schema (2020-12) has no
  null there. ``default`` and ``const`` stay, and so does all below ``default``, ``const``, ``enum``
  and ``examples``: there null is a value.

A call's arguments stay as they are: null is a value there too. A template kwarg that is null counts
as not given, as in vLLM.
"""

from __future__ import annotations

from typing import Any, Final, cast

from pipeline.types import Message

_VALUE_KEYWORDS: Final = frozenset({"default", "const", "enum", "examples"})
_NULLABLE_KEYWORDS: Final = frozenset({"default", "const"})
_SCHEMAS_BY_NAME: Final = frozenset(
    {"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"}
)


def drop_message_nulls(message: Message) -> Message:
    """Return the message without keys that are null, its ``content`` apart.

    >>> drop_message_nulls({"role": "assistant", "content": None, "name": None})
    {'role': 'assistant', 'content': None}
    """
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        dropped = [_drop_call_nulls(call) for call in cast("list[Any]", calls)]
        if dropped != calls:
            message = {**message, "tool_calls": dropped}
    if None not in message.values():
        return message
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def drop_tool_nulls(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tools without keys that are null, where JSON Schema has no null.

    >>> drop_tool_nulls([{"function": {"name": "f", "parameters": {"properties": {"x": None}}}}])
    [{'function': {'name': 'f', 'parameters': {'properties': {}}}}]
    """
    return [_drop_keywords(tool) for tool in tools]


def _drop_call_nulls(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    kept = _without_nulls(cast("dict[str, Any]", call))
    function = kept.get("function")
    if isinstance(function, dict):
        kept["function"] = _without_nulls(cast("dict[str, Any]", function))
    return kept


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _drop_keywords(schema: Any) -> Any:
    """Return a schema, or a tool around one, without keywords that are null."""
    if isinstance(schema, list):
        return [_drop_keywords(item) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for keyword, value in cast("dict[str, Any]", schema).items():
        if value is None and keyword not in _NULLABLE_KEYWORDS:
            continue
        if keyword in _SCHEMAS_BY_NAME and isinstance(value, dict):
            named = _without_nulls(cast("dict[str, Any]", value))
            kept[keyword] = {name: _drop_keywords(each) for name, each in named.items()}
        else:
            kept[keyword] = value if keyword in _VALUE_KEYWORDS else _drop_keywords(value)
    return kept
