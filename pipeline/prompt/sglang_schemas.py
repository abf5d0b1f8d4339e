"""The JSON schemas of tools as SGLang 0.5.23 rewrites them: type names of databases and of Python.

The rewritten schema is what the template prints, so ``dict`` reaches the model as ``object``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from pipeline.errors import Rejected

# SGLang 0.5.23, ``function_call/utils.py``: ``_JSON_SCHEMA_TYPE_ALIASES``, ``_PREFIX_RULES``.
_STANDARD: Final = frozenset(("string", "number", "integer", "boolean", "object", "array", "null"))
_ALIASES: Final = {
    alias: kind
    for kind, aliases in {
        "string": "str text varchar char enum uuid date datetime time timestamp binary blob bytea "
        "bytes varbinary",
        "boolean": "bool",
        "integer": "bigint smallint tinyint",
        "number": "double decimal real numeric",
        "array": "arr tuple set",
        "object": "map",
    }.items()
    for alias in aliases.split()
}
_PREFIXES: Final = {
    **dict.fromkeys(("int", "uint", "long", "short", "unsigned"), "integer"),
    **dict.fromkeys(("num", "float"), "number"),
    "list": "array",
    "dict": "object",
}
_AFTER_PREFIX: Final = "0123456789[<( \t"
# Where a JSON schema holds further schemas: as values of an object, as a list, or as itself.
_SCHEMA_OBJECTS: Final = frozenset(
    ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
)
_SCHEMA_LISTS: Final = frozenset(("anyOf", "oneOf", "allOf", "prefixItems"))
_SCHEMAS: Final = frozenset(
    (
        *("items", "additionalProperties", "not", "if", "then", "else", "contains"),
        *("propertyNames", "unevaluatedItems", "unevaluatedProperties"),
    )
)


def rewrite_schema(schema: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a copy of ``schema`` with each type's name as JSON Schema has it.

    Raises `Rejected` for a type that stays unknown and for a schema nested too deeply.

    SGLang 0.5.23, ``function_call/utils.py``: ``normalize_json_schema_types``;
    ``entrypoints/openai/serving_chat.py``: ``_validate_request``.

    >>> rewrite_schema({"type": "dict", "properties": {"a": {"type": "float"}}}, "parameters")
    {'type': 'object', 'properties': {'a': {'type': 'number'}}}
    """
    try:
        return cast("dict[str, Any]", _rewrite(schema, where))
    except RecursionError:
        raise Rejected("server_refused", f"{where}: SGLang refuses a schema this deep") from None


def _rewrite(node: object, where: str) -> Any:
    if isinstance(node, list | tuple):
        return [_rewrite(each, where) for each in cast("list[object]", node)]
    if not isinstance(node, Mapping):
        return node
    made: dict[str, Any] = {}
    for key, value in cast("Mapping[str, Any]", node).items():
        if key == "type":
            made[key] = _rewrite_types(value, where)
        elif key in _SCHEMAS or (key in _SCHEMA_LISTS and isinstance(value, list | tuple)):
            made[key] = _rewrite(value, where)
        elif key in _SCHEMA_OBJECTS and isinstance(value, Mapping):
            named = cast("Mapping[str, Any]", value)
            made[key] = {name: _rewrite(each, where) for name, each in named.items()}
        else:
            made[key] = value
    return made


def _rewrite_types(kinds: object, where: str) -> Any:
    if not isinstance(kinds, list | tuple):
        return rewrite_type(kinds, where)
    if not kinds:
        raise Rejected("server_refused", f"{where}: SGLang refuses a list of no types", kinds)
    return list(dict.fromkeys(rewrite_type(kind, where) for kind in cast("list[object]", kinds)))


def rewrite_type(kind: object, where: str) -> str:
    """Return the JSON Schema type that SGLang takes ``kind`` for; raises `Rejected` for none.

    SGLang 0.5.23, ``function_call/utils.py``: ``_normalize_single_type``.

    >>> [rewrite_type(kind, "type") for kind in ("varchar(20)", "Int32", "list[str]")]
    ['string', 'integer', 'array']
    """
    if isinstance(kind, str):
        if kind in _STANDARD:
            return kind
        base = kind.split("(", 1)[0].strip().lower()
        if base in _STANDARD:
            return base
        if base in _ALIASES:
            return _ALIASES[base]
        for prefix, target in _PREFIXES.items():
            if base == prefix or (base.startswith(prefix) and base[len(prefix)] in _AFTER_PREFIX):
                return target
    raise Rejected(
        "server_refused", f"{where}: SGLang refuses this type; use one of JSON Schema's", kind
    )
