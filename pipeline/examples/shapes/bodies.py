"""Logs of calls that keep what went over the wire: ``request_body`` and ``response_body``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from pipeline.errors import Rejected
from pipeline.examples.fields import read_json

BODIES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "request_body": "request",
        "requestBody": "request",
        "response_body": "response",
        "responseBody": "response",
    }
)
"""Names of a body, with the key under which a log of a call has it."""


def settle_bodies(values: Mapping[str, Any]) -> None:
    """Raise `Rejected` (``ambiguous_shape``) where a body is another than the row's ``request``, say.

    Two that are the same, as objects or as JSON text, are one.
    """
    found: dict[str, tuple[str, Any]] = {}
    for name in (*BODIES.values(), *BODIES):
        value = values.get(name)
        if value is None:
            continue
        key = BODIES.get(name, name)
        first, other = found.setdefault(key, (name, value))
        if value != other and _object_in(value) != _object_in(other):
            raise Rejected(
                "ambiguous_shape",
                f"{first} and {name} differ, and both may be the {key} of the call; expected one",
                value,
            )


def rename_bodies(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row with its bodies as ``request`` and ``response``, where it has both of them.

    Raises `Rejected`: ``wrong_type`` for a body that is neither an object nor the JSON text of one (of a
    stream, say), and what `settle_bodies` raises.

    >>> rename_bodies({"request_body": '{"prompt": "2+2="}', "response": {"choices": []}})
    {'response': {'choices': []}, 'request': {'prompt': '2+2='}}
    """
    settle_bodies(values)
    shown = {name: key for name, key in BODIES.items() if values.get(name) is not None}
    keys = {*shown.values(), *(key for key in BODIES.values() if values.get(key) is not None)}
    if not shown or len(keys) < 2:
        return values
    renamed = {name: value for name, value in values.items() if name not in shown}
    for name, key in shown.items():
        body = read_json(values[name], name)
        if not isinstance(body, dict):
            raise Rejected("wrong_type", f"{name}: expected an object, or its JSON text", body)
        renamed[key] = body
    return renamed


def _object_in(value: Any) -> Any:
    """Return what JSON text says; another text is itself."""
    try:
        return read_json(value, "")
    except Rejected:
        return value
