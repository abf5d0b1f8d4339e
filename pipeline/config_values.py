"""Which values a setting takes: those of its field's type, as YAML and flags can give them."""

from __future__ import annotations

import math
from types import UnionType
from typing import Any, Literal, cast, get_args, get_origin


def is_of_type(value: object, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is bool:
        return isinstance(value, bool)
    if get_origin(hint) is UnionType:
        return any(is_of_type(value, option) for option in get_args(hint))
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    if get_origin(hint) is tuple:
        items = [value] if isinstance(value, str) else value
        return isinstance(items, (list, tuple)) and all(isinstance(item, str) for item in items)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and _is_json(cast("object", value))
    return value is None


def _is_json(value: object) -> bool:
    """Return True where JSON can hold ``value``: YAML also has sets and keys of any type."""
    if isinstance(value, dict):
        items = cast("dict[object, object]", value).items()
        return all(isinstance(name, str) and _is_json(item) for name, item in items)
    if isinstance(value, list):
        return all(map(_is_json, cast("list[object]", value)))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (str, int))


def spell_type(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return "text or a list of texts"
    if get_origin(hint) is dict:
        return "names with JSON values"
    if get_origin(hint) is UnionType:
        return " or ".join(spell_type(option) for option in get_args(hint))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(
        hint, "nothing"
    )
