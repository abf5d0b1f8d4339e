"""The shape of a chat request: what must hold before any server's rule can be applied.

A key whose value is null counts as absent, because Arrow and pydantic write every key of a record.
The checks read the request and never change it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, cast

from pipeline.errors import Rejected


def iterate_messages(messages: object) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield ``("messages[0]", role, message)`` for each message.

    Raises `Rejected`: ``empty_context`` for no message, ``wrong_type`` and ``missing_field`` for a
    message that is no object or has no role.
    """
    listed = expect_list(messages, "messages")
    if not listed:
        raise Rejected("empty_context", "messages is empty; the server needs at least one message")
    for index, message in enumerate(listed):
        where = f"messages[{index}]"
        fields, role = read_role(message, where)
        yield where, role, fields


def read_role(message: object, where: str) -> tuple[Mapping[str, Any], str]:
    """Return the fields of a message and its role.

    Raises `Rejected`: ``wrong_type`` and ``missing_field`` where it is no object or has no role.
    """
    fields = expect_object(message, where)
    return fields, expect_text(require(fields, "role", where), f"{where}.role")


def require(fields: Mapping[str, Any], key: str, where: str) -> Any:
    """Return ``fields[key]``; raises `Rejected` (``missing_field``) where it is absent or null."""
    value = fields.get(key)
    if value is None:
        raise Rejected("missing_field", f"{where} has no {key!r}", fields)
    return value


def expect_object(value: object, where: str) -> Mapping[str, Any]:
    """Return ``value`` where it is a JSON object; raises `Rejected` (``wrong_type``) else."""
    if not isinstance(value, Mapping):
        refuse_type(value, where, "an object")
    return cast("Mapping[str, Any]", value)


def expect_list(value: object, where: str) -> Sequence[Any]:
    """Return ``value`` where it is a JSON array; raises `Rejected` (``wrong_type``) else."""
    if not isinstance(value, list | tuple):
        refuse_type(value, where, "a list")
    return cast("Sequence[Any]", value)


def expect_text(value: object, where: str) -> str:
    """Return ``value`` where it is text; raises `Rejected` (``wrong_type``) else."""
    if not isinstance(value, str):
        refuse_type(value, where, "text")
    return value


def optional_text(fields: Mapping[str, Any], key: str, where: str) -> str | None:
    """Return the text ``fields[key]``, or None where it is absent or null."""
    value = fields.get(key)
    return None if value is None else expect_text(value, f"{where}.{key}")


def optional_flag(fields: Mapping[str, Any], key: str, where: str) -> bool | None:
    """Return the truth value ``fields[key]``, or None where it is absent or null."""
    value = fields.get(key)
    if value is not None and not isinstance(value, bool):
        refuse_type(value, f"{where}.{key}", "true or false")
    return value


def refuse_type(value: object, where: str, expected: str) -> NoReturn:
    """Raise `Rejected` (``wrong_type``)."""
    raise Rejected("wrong_type", f"{where} must be {expected}", value)


def refuse_part(kind: str, where: str) -> NoReturn:
    """Raise `Rejected` (``unsupported_content``): an image, audio, video or file."""
    raise Rejected(
        "unsupported_content", f"{where} is a part of type {kind!r}; only text can be rendered"
    )


def in_field_order(fields: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """Return ``fields`` with the keys of ``order`` first, the others after them as they came.

    >>> in_field_order({"type": "function", "index": 0, "id": "a"}, ("id", "type"))
    {'id': 'a', 'type': 'function', 'index': 0}
    """
    return {key: fields[key] for key in order if key in fields} | dict(fields)
