"""A row of a table -> JSON, exactly, or a reject that says which value has no JSON.

Arrow has types that JSON lacks, and types in which two values of the input are one. Both are refused
rather than guessed at.
"""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite
from typing import Any, Final, cast

import pyarrow as pa

from pipeline.errors import Rejected
from pipeline.lines.json_text import parse_value

Decoder = Callable[[Any], Any]
"""Turns a Python value of an Arrow type into JSON's; never called with None."""

_LIST_KINDS: Final = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_KIND_NAMES: Final = {
    datetime.datetime: "a timestamp",
    datetime.date: "a date",
    datetime.time: "a time",
    datetime.timedelta: "a duration",
    decimal.Decimal: "a decimal",
}
# Fields that are never text, so that datasets' type Json cannot have taken a text for JSON.
_OBJECT_FIELDS: Final = frozenset(
    {
        "messages",
        "conversations",
        "tools",
        "tool_calls",
        "function",
        "arguments",
        "parameters",
        "properties",
        "items",
        "chat_template_kwargs",
        "request",
        "response",
        "body",
        "choices",
        "message",
    }
)


ARGUMENTS: Final = ("arguments", "args")
"""Keys of what a call was given."""
_TIMES: Final = frozenset(
    f"{name}.timestamp" for name in ("messages", "conversation", "conversations")
)
"""When a turn was said: no prompt has it, and data sets of logs do (WildChat)."""

_MESSAGE_KEYS: Final = frozenset({"role", "from", "type", "content", "tool_calls"})


def write_json(row: dict[str, Any]) -> str:
    """Return a row as one line of JSON.

    Raises `Rejected` with the place of the first value that JSON does not have: ``bad_json`` (NaN and
    infinities, as in a JSONL file), ``unsupported_content`` (bytes), ``wrong_type`` (the rest).

    >>> write_json({"id": "ä", "weight": 0.5})
    '{"id": "ä", "weight": 0.5}'
    """
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        fault = _find_fault(row, "")
        if fault is None:
            raise
        raise fault from None


def find_decoder(schema: pa.Schema) -> Decoder | None:
    """Return what makes JSON's values of a table's rows, None where they are that already.

    Raises `Rejected` for a column whose type has lost what its values were.
    """
    return _struct_decoder(list(schema), "")


def _find_fault(value: Any, path: str) -> Rejected | None:
    """Return the reject for the first value that JSON does not have."""
    if isinstance(value, dict):
        parts = [(f"{path}.{key}", part) for key, part in cast("dict[str, Any]", value).items()]
    elif isinstance(value, list):
        parts = [(f"{path}[{index}]", part) for index, part in enumerate(cast("list[Any]", value))]
    else:
        return _judge_value(value, path.lstrip("."))
    return next((fault for name, part in parts if (fault := _find_fault(part, name))), None)


def _judge_value(value: Any, path: str) -> Rejected | None:
    if value is None or isinstance(value, str | bool | int):
        return None
    if isinstance(value, float):
        reason = f"{path}: {value} is not JSON; write null, a number or a text"
        return None if isfinite(value) else Rejected("bad_json", reason)
    if isinstance(value, bytes):
        return Rejected("unsupported_content", f"{path}: bytes; only text can be rendered", value)
    names = (name for kind, name in _KIND_NAMES.items() if isinstance(value, kind))
    kind = next(names, f"a {type(value).__name__}")
    reason = f"{path}: {kind}, which JSON does not have; cast the column to text"
    return Rejected("wrong_type", reason, str(value))


def _decoder_for(kind: pa.DataType, path: str) -> Decoder | None:
    """Return the decoder of an Arrow type; ``path`` names its place, as ``messages.content``."""
    if isinstance(kind, pa.JsonType):
        return _json_decoder(path)
    if pa.types.is_struct(kind):
        decode = _struct_decoder([kind.field(index) for index in range(kind.num_fields)], path)
        is_arguments = _field_of(path) in ARGUMENTS
        return partial(_decode_arguments, decode or _keep) if is_arguments else decode
    if pa.types.is_map(kind):
        decode = _decoder_for(cast("Any", kind).item_type, path)
        return partial(_decode_map, path, decode or _keep)
    if pa.types.is_timestamp(kind) and path in _TIMES:
        return datetime.datetime.isoformat
    if any(is_kind(kind) for is_kind in _LIST_KINDS):
        decode = _decoder_for(kind.value_type, path)
        return None if decode is None else partial(_decode_items, decode)
    return None


def _struct_decoder(fields: Sequence[pa.Field], path: str) -> Decoder | None:
    decoders = {
        field.name: decode
        for field in fields
        if (decode := _decoder_for(field.type, f"{path}.{field.name}".lstrip("."))) is not None
    }
    return partial(_decode_fields, decoders) if decoders else None


def _decode_fields(decoders: dict[str, Decoder], value: dict[str, Any]) -> dict[str, Any]:
    return {
        name: decoders[name](part) if name in decoders and part is not None else part
        for name, part in value.items()
    }


def _decode_items(decode: Decoder, items: list[Any]) -> list[Any]:
    return [None if item is None else decode(item) for item in items]


def _decode_map(path: str, decode: Decoder, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    value = {key: None if part is None else decode(part) for key, part in pairs}
    if len(value) != len(pairs) or not all(isinstance(key, str) for key in value):
        raise Rejected("bad_json", f"{path}: a map; expected keys that are text, each once", pairs)
    return value


def _keep(value: Any) -> Any:
    return value


def _json_decoder(path: str) -> Decoder:
    """Return the reader of datasets' type Json: the JSON text that it holds, parsed strictly.

    datasets 5 (``features/features.py``: ``Json.encode_example``) keeps a text that is JSON as JSON and
    spells any other as a JSON text, so text, messages and lists of these are what they were, and the
    text 42 and the number 42 are one: such a value is refused. Its own reader is not used, because it
    rounds numbers.
    """
    name = _field_of(path)
    reason = (
        f"{path}: of datasets' type Json, in which the text 42 and the number 42 are one; "
        "give the JSONL file that it was made from, or keep the field as text"
    )

    def decode(text: str) -> Any:
        value = parse_value(text)
        items = cast("list[Any]", value) if isinstance(value, list) else [value]
        if name in _OBJECT_FIELDS:
            is_certain = all(isinstance(item, dict) for item in items)
        else:
            is_certain = isinstance(value, str) or all(map(_is_message, items))
        if not is_certain:
            raise Rejected("wrong_type", reason, text)
        return value

    return decode


def _is_message(value: object) -> bool:
    """Say whether an object is a message or a part of one, and not a text that happens to be JSON."""
    return isinstance(value, dict) and not _MESSAGE_KEYS.isdisjoint(cast("dict[str, Any]", value))


def _decode_arguments(decode: Decoder, value: dict[str, Any]) -> dict[str, Any]:
    """Read a call's arguments in a struct, where a key that is null is absent.

    All calls of a column have the keys of each; a null that a call itself had is lost with them.
    """
    return drop_nulls(decode(value))


def drop_nulls(value: Any) -> Any:
    """Return a JSON value without the keys of its objects that are null.

    >>> drop_nulls({"a": None, "b": [{"c": None}]})
    {'b': [{}]}
    """
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value).items()
        return {key: drop_nulls(part) for key, part in fields if part is not None}
    if isinstance(value, list):
        return [drop_nulls(part) for part in cast("list[Any]", value)]
    return value


def _field_of(path: str) -> str:
    return path.rpartition(".")[2]
