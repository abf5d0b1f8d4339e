"""Strict JSON: one line of text becomes one object, exactly, or a reject that says why.

Python's own parser decides, because numbers must reach the template as `json.loads` gives them
(1e2 is a float, 12345678901234567890 an int); what it takes in silence is refused here: duplicate
keys (the last would win), NaN and infinities, lone surrogates, nesting that later code could not
walk. orjson, twice as fast, reads the lines for which it can be shown that it reads them the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from math import isinf
from typing import Any, Final, NoReturn, cast

import orjson

from pipeline.errors import EXCERPT_LIMIT, Rejected, excerpt_of

DEPTH_LIMIT: Final = 200
"""Containers within containers. Chat logs stay below 20. Python's parser gives up between 900 and
some 10000, by version and by the stack it starts from, which would make a result depend on the
worker."""

_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")
_ARRAY_OF_OBJECTS: Final = re.compile(r"[ \t\r]*\[[ \t\r]*[\]{]")


class _NotStrict(ValueError):
    """Raised inside the parser: ``token`` is the text that strict JSON does not allow."""

    def __init__(self, reason: str, token: str) -> None:
        super().__init__(reason, token)
        self.reason, self.token = reason, token


def parse_line(text: str) -> dict[str, Any]:
    """Return the object that one line of JSON holds, numbers as `json.loads` gives them.

    Raises:
        Rejected: ``bad_json``, ``not_an_object``, or ``lone_surrogate`` with the field's path.

    >>> parse_line('{"id": "a", "top_p": 1.0}')
    {'id': 'a', 'top_p': 1.0}
    """
    value = decode_quickly(text)
    if type(value) is not dict:
        value = _decode(text)
        if not isinstance(value, dict):
            reason = (
                f"the line holds {_kind_of(value)}, expected an object with the keys of an example"
            )
            raise Rejected("not_an_object", reason, _excerpt(text, 0))
        _refuse_unsafe(value, text)
    return cast(dict[str, Any], value)


def parse_value(text: str) -> Any:
    """Return the value of any type that JSON text holds, as strictly as `parse_line`.

    Raises:
        Rejected: ``bad_json``, or ``lone_surrogate`` with the field's path.
    """
    value = decode_quickly(text)
    if value is None:
        value = _decode(text)
        _refuse_unsafe(value, text)
    return value


def find_end(text: str, begin: int) -> int:
    """Return the place after the valid JSON value that begins at ``begin``."""
    return _PLAIN_DECODER.raw_decode(text, begin)[1]


def is_one_value_over_lines(head: Sequence[str]) -> bool:
    """Say whether a file that begins with these lines is one JSON value and not JSONL.

    Args:
        head: the first three lines that are not blank, or all of them where there are fewer.

    The first line must be the beginning of a longer value, and the next lines must continue it. A
    torn line does not count: the object after it does not continue it, or ends the file with it
    unfinished. An array of objects that is alone in its file counts, however it ends.

    >>> is_one_value_over_lines(['{"id": "a",', '"context": "b"}', '{"id": "b",'])
    True
    >>> is_one_value_over_lines(['{"id": "a",', '{"id": "b"}', '{"id": "c"}'])
    False
    """
    if len(head) == 1:
        return _ARRAY_OF_OBJECTS.match(head[0]) is not None
    if not head or _progress(head[0]) != "begun":
        return False
    for end in range(2, len(head) + 1):
        progress = _progress("\n".join(head[:end]))
        if progress != "begun":
            return progress == "whole"
    return len(head) > 2 or _progress(head[1]) != "whole"


def _progress(text: str) -> str:
    """Return ``whole`` for a JSON value, ``begun`` if the text ends inside one, else ``broken``."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return "begun" if _ends_early(text, error) else "broken"
    except (RecursionError, ValueError):
        return "broken"
    return "whole"


def _ends_early(text: str, error: json.JSONDecodeError) -> bool:
    # For a text that ends inside a string the parser gives the place where the string begins.
    return error.pos == len(text) or error.msg.startswith("Unterminated string")


def decode_quickly(text: str) -> Any:
    """Return the value of JSON ``text``, or None where the slow way alone can tell what it is."""
    try:
        value: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if _is_exact(value, text) else None


def _is_exact(value: Any, text: str) -> bool:
    """Say whether ``value``, orjson's reading of ``text``, is what `_decode` gives and nothing unsafe.

    orjson refuses lone surrogates, NaN and infinities. It keeps the last of duplicate keys, makes
    floats of integers over 64 bits, and nests deeper.
    """
    # Every string of the text begins with a quote after no backslash, and ends with one, but for a
    # string that ends with a backslash itself. A key that was dropped leaves a quote unexplained.
    unexplained = text.count('"') - text.count('\\"')
    level = [value]
    for _ in range(DEPTH_LIMIT):
        below: list[Any] = []
        for part in level:
            kind = type(part)
            if kind is str:
                unexplained -= 1 if part.endswith("\\") else 2
            elif kind is dict:
                below += part.keys()
                below += part.values()
            elif kind is list:
                below += part
            elif kind is float and abs(part) > 1e15:
                return False
        if not below:
            return unexplained == 0
        level = below
    return False


def _decode(text: str) -> object:
    """Return the JSON value of ``text``, or raise ``bad_json``."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise _syntax_reject(text, error) from None
    except _NotStrict as error:
        place = text.rfind(error.token)
        raise Rejected("bad_json", error.reason, _excerpt(text, max(place, 0))) from None
    except RecursionError:
        raise _depth_reject(text) from None
    except ValueError:
        # `int` refuses more than 4300 digits (Python's guard against CVE-2020-10735).
        longest = max(re.finditer(r"\d+", text), key=lambda digits: len(digits[0]))
        reason = f"a number of {len(longest[0])} digits; keep it as text"
        raise Rejected("bad_json", reason, _excerpt(text, longest.start())) from None


def _refuse_unsafe(value: Any, text: str) -> None:
    """Raise for a value that later code could not walk or write: too deep, or a lone surrogate."""
    # Without this many opening brackets there is nothing to measure, and counting is fast.
    if text.count("{") + text.count("[") > DEPTH_LIMIT and depth_of(value) > DEPTH_LIMIT:
        raise _depth_reject(text)
    if (fault := find_lone_surrogate(value, text)) is not None:
        path, found = fault
        reason = (
            f"the text at {excerpt_of(path.lstrip('.'))} holds half of a surrogate pair; "
            "write the whole character, or U+FFFD in its place"
        )
        place = next(i for i, character in enumerate(found) if not _encodes(character))
        raise Rejected("lone_surrogate", reason, _excerpt(found, place))


def _depth_reject(text: str) -> Rejected:
    reason = f"nested deeper than {DEPTH_LIMIT} levels; flatten the value or keep it as text"
    return Rejected("bad_json", reason, _excerpt(text, 0))


def _syntax_reject(text: str, error: json.JSONDecodeError) -> Rejected:
    if text.startswith("\ufeff"):
        reason = "a byte order mark inside the file (were files joined?); remove it"
        return Rejected("bad_json", reason, _excerpt(text, 0))
    if _ends_early(text, error):
        reason = "the line ends inside its JSON value (a torn line?); restore it or delete it"
        return Rejected("bad_json", reason, _excerpt(text, len(text)))
    remedy = "restore the line or delete it"
    if error.msg == "Extra data":
        remedy = "write one object a line and end each line with \\n"
    elif text.lstrip().startswith("{'"):
        remedy = "it is Python's repr of a dict: write it with json.dumps"
    reason = f"not JSON ({error.msg} at character {error.pos + 1}); {remedy}"
    return Rejected("bad_json", reason, _excerpt(text, error.pos))


def _excerpt(text: str, place: int) -> str:
    """Return the part of ``text`` around ``place``, as long as an excerpt may be."""
    start = max(0, min(place - EXCERPT_LIMIT // 2, len(text) - EXCERPT_LIMIT))
    return text[start : start + EXCERPT_LIMIT]


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case str():
            return "a text"
        case list():
            return "an array"
        case _:
            return "a number"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        token = json.dumps(twice, ensure_ascii=False)
        raise _NotStrict(f"the key {excerpt_of(token)} is twice in one object; keep one", token)
    return value


def _refuse_constant(token: str) -> NoReturn:
    raise _NotStrict(f"{token} is not JSON; write null, a number or a text", token)


def _finite(token: str) -> float:
    value = float(token)
    if isinf(value):
        raise _NotStrict("a number too large for a float; keep it as text", token)
    return value


_PLAIN_DECODER: Final = json.JSONDecoder()
_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite
)


def depth_of(value: Any) -> int:
    """Return how many containers lie within each other, the outermost counted."""
    level, depth = [value] if type(value) is dict or type(value) is list else [], 0
    while level:
        depth += 1
        parts = (part for each in level for part in (each.values() if type(each) is dict else each))
        level = [part for part in parts if type(part) is dict or type(part) is list]
    return depth


def find_lone_surrogate(value: Any, text: str) -> tuple[str, str] | None:
    """Return the first key or text of ``value`` with half of a surrogate pair, if any, behind its path.

    ``text`` is the JSON of the value; a path is spelt as ``.messages[2].content``.
    """
    if _SURROGATE_ESCAPE.search(text) or not (text.isascii() or _encodes(text)):
        return _find_unwritable(value)
    return None


def _encodes(text: str) -> bool:
    """Say whether ``text`` is free of lone surrogates, the one thing UTF-8 cannot write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _find_unwritable(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str):
        return None if _encodes(value) else ("", value)
    parts: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        for key, part in cast(dict[str, Any], value).items():
            parts += [(f".{key}", key), (f".{key}", part)]
    elif isinstance(value, list):
        parts = [(f"[{index}]", part) for index, part in enumerate(cast(list[Any], value))]
    found = ((place, _find_unwritable(part)) for place, part in parts)
    return next(((place + fault[0], fault[1]) for place, fault in found if fault), None)
