"""JSON that others wrote, read within bounds: size, depth, and text that UTF-8 can hold.

`json.loads` alone follows ``[`` x 100,000 into a `RecursionError`, reads files of any size and lets
lone surrogates through, which nothing can print or save.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, Final, cast

from pipeline.lines.json_text import depth_of, find_lone_surrogate

MOST_BYTES: Final = 2**28
"""256 MiB: the manifest of a set of a million input files."""

MOST_DEPTH: Final = 100


class NotThatJson(ValueError):
    """The content is no JSON object within the bounds; the message says what it is, without a place."""


def read_object(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file. Raises as `read_content` and `parse_object`."""
    return parse_object(read_content(path, most_bytes))


def read_content(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Return the bytes of a file that others may have put there.

    Raises `NotThatJson` for a pipe, a device or too many bytes, `FileNotFoundError`, and `OSError` where
    it cannot be read.
    """
    # Opening a named pipe would wait for somebody to write to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotThatJson("no regular file; expected JSON")
        if status.st_size > most_bytes:
            raise NotThatJson(f"{status.st_size} bytes; expected JSON of at most {most_bytes}")
        return file.read(most_bytes)


def parse_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object that ``content`` is. Raises `NotThatJson`.

    >>> parse_object(b'{"a": [1]}')
    {'a': [1]}
    """
    too_deep = NotThatJson(f"nested deeper than {MOST_DEPTH}; expected JSON of a set")
    try:
        text = content.decode("utf-8")
        value: object = json.loads(text)
    except RecursionError:
        raise too_deep from None
    except ValueError as error:
        raise NotThatJson(f"{error}; expected JSON") from None
    if not isinstance(value, dict):
        raise NotThatJson(f"a JSON {type(value).__name__}; expected a JSON object")
    if depth_of(value) > MOST_DEPTH:
        raise too_deep
    if find_lone_surrogate(value, text):
        raise NotThatJson("a lone surrogate; expected text that UTF-8 can hold")
    return cast("dict[str, Any]", value)
