"""The manifest of a set, read: the one reader, and strict, since a set may be anybody's.

What other modules take from a manifest has the type and the bounds that are checked here; keys that
are not known here, of a newer version, are let through. A newer *format* is refused by its number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pipeline.errors import DataRefused, UsageError, excerpt_of
from pipeline.lines.bounded_json import NotThatJson, read_object
from pipeline.lines.split_names import is_split_name
from pipeline.rows.seal import SEAL_FORMAT

REJECTS: Final = "rejects.jsonl"
"""File of a set that holds its rejects."""

EXAMPLES: Final = "examples.sha256"
"""File of a set that names its examples: the sha256 of each line, and the id as JSON."""

MANIFEST: Final = "manifest.json"
"""The file whose presence makes a folder a sealed set; it is written last."""

_KEYS: Final = {"digest", "seal", "counts", "config", "files"}
_LONGEST_NAME: Final = 1000


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of the set in ``folder``.

    Raises `UsageError` where there is none of ours, `DataRefused` where it says what none can say.
    """
    path = folder / MANIFEST
    try:
        if path.is_symlink() and not lies_inside(folder, path):
            raise NotThatJson("a link to outside of the set; expected a file")
        return check_manifest(read_object(path), str(path))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"{folder}: no {MANIFEST} there; expected the folder of a prepared set"
        ) from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}; expected a file to read") from error
    except NotThatJson as error:
        raise UsageError(f"{path}: {error}; prepare the set again") from error
    except ValueError as error:
        # A null byte in the path, say.
        if isinstance(error, (UsageError, DataRefused)):
            raise
        raise UsageError(f"{folder}: {error}; expected the folder of a prepared set") from error


def check_manifest(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return ``values`` where they are a manifest; ``where`` names it. Raises as `read_manifest`."""
    missing = _KEYS - values.keys()
    if missing:
        raise UsageError(f"{where}: lacks {', '.join(sorted(missing))}; prepare the set again")
    try:
        _check_format(values["seal"])
        _check(values, _MANIFEST)
        _check_sums(values["counts"])
    except _Unexpected as error:
        raise DataRefused(
            f"{where}: {error}; it was changed, or another tool wrote it: prepare or pull the set again"
        ) from error
    return values


def lies_inside(folder: Path, path: Path) -> bool:
    """Say whether a path, its links followed, lies in ``folder``."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):
        # A circle of links.
        return False


def is_file_name(name: str) -> bool:
    """Say whether ``name`` can only be a file inside the folder that it counts from.

    >>> is_file_name("train/state.json"), is_file_name("../state.json"), is_file_name("/etc/passwd")
    (True, False, False)
    """
    parts = name.split("/")
    return (
        len(name) <= _LONGEST_NAME
        and not any(part in ("", ".", "..") for part in parts)
        and not any(mark in name for mark in "\0\\")
    )


def left_out_of(manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the columns and files that a set lacks since it was pushed without its provenance."""
    left_out: Mapping[str, list[str]] = manifest.get("left_out") or {}
    return {kind: list(left_out.get(kind, ())) for kind in ("columns", "files")}


def write_manifest(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest as it stands in a set.

    Half a character, of a path that is not UTF-8, is an escape of JSON then, and read as it was.
    """
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


class _Unexpected(ValueError):
    """A value that is not what a manifest has there: its place, what is right, what was found."""


class _MapOf(NamedTuple):
    """The shape of an object of any keys: of its values, and of its keys in words and as a test."""

    each: Any
    keys: str = ""
    is_key: Callable[[str], bool] = lambda _: True


def _check(value: Any, shape: Any, at: str = "") -> None:
    """Refuse a value of JSON that has not the ``shape`` of one below; ``at`` is its dotted place.

    A key that ends in ``?`` may be missing; others may stand beside those that are named.
    """
    match shape:
        case range():
            fits, expected = (
                type(value) is int and value in shape,
                f"a whole number from {shape.start}",
            )
        case re.Pattern():
            fits = isinstance(value, str) and bool(shape.fullmatch(value))
            expected = "64 hexadecimal digits"
        case frozenset():
            fits, expected = isinstance(value, str) and value in shape, " or ".join(sorted(shape))
        case dict() | _MapOf():
            fits, expected = isinstance(value, dict), "an object"
        case list():
            fits, expected = isinstance(value, list), "a list"
        case _:
            fits, expected = isinstance(value, shape), _WORDS[shape]
    if not fits:
        raise _Unexpected(f"{at}: found {excerpt_of(value)}; expected {expected}")
    inner: Any = value
    match shape:
        case dict():
            for key, each in shape.items():
                name = key.removesuffix("?")
                place = f"{at}.{name}".lstrip(".")
                if name in inner:
                    _check(inner[name], each, place)
                elif name == key:
                    raise _Unexpected(f"{place}: missing")
        case _MapOf():
            for name, item in inner.items():
                if not shape.is_key(name):
                    raise _Unexpected(f"{at}: found {excerpt_of(name)}; expected {shape.keys}")
                _check(item, shape.each, f"{at}.{excerpt_of(name)}")
        case list():
            for number, item in enumerate(inner):
                _check(item, shape[0], f"{at}[{number}]")
        case _:
            pass


def _check_format(seal: Any) -> None:
    _check(seal, {"format": range(1, 2**63)}, "seal")
    if seal["format"] > SEAL_FORMAT:
        raise _Unexpected(
            f"seal.format: found {excerpt_of(seal['format'])}, made by a newer context-frozen; this "
            f"one reads up to {SEAL_FORMAT}: upgrade it"
        )


def _check_sums(counts: Mapping[str, Any]) -> None:
    splits: Mapping[str, int] = counts["rows_by_split"]
    if sum(splits.values()) != counts["rows"]:
        raise _Unexpected(
            f"counts.rows_by_split: {sum(splits.values())} rows in all, counts.rows is {counts['rows']}"
        )


_WORDS: Final[Mapping[Any, str]] = {str: "text", str | None: "text", bool: "true or false"}
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_COUNT: Final = range(2**63)
_COLUMNS: Final = frozenset({"full", "train"})
_SEAL: Final = {
    "format": _COUNT,
    "key": _SHA256,
    "input": [{"name": str, "sha256": str}],
    "tokenizer": {
        "files": _MapOf(str),
        "class": str,
        "vocabulary_size": range(1, 2**31 + 1),
        "backend_sha256": _SHA256,
    },
    "chat_template": str | None,
    "server": {"name": str, "version": str},
    "settings": {
        "columns": _COLUMNS,
        "max_len": range(2, 2**31 + 1),
        "overlong": str,
        "server": str,
    },
    "versions": _MapOf(str),
    "templates": _MapOf(str),
}
_COUNTS: Final = {
    **dict.fromkeys(("lines", "points", "rows", "rejects", "faults", "blank_lines"), _COUNT),
    **dict.fromkeys(("rows_as_served", "rows_shortened", "dropped_messages"), _COUNT),
    "rows_by_split": _MapOf(_COUNT, "the name of a split", is_split_name),
    "by_code": _MapOf(_COUNT),
    "by_flag": _MapOf(_COUNT),
    "tokens": dict.fromkeys(("total", "context", "continuation", "dropped"), _COUNT),
}
_CONFIG: Final = {
    "input": [str],
    "tokenizer": str,
    "output": str,
    "columns": _COLUMNS,
    "report?": bool,
    "chat_template?": str | None,
    "license?": str | None,
    "pretty_name?": str | None,
    "language?": [str],
}
_MANIFEST: Final = {
    "digest": _SHA256,
    "seal": _SEAL,
    "counts": _COUNTS,
    "config": _CONFIG,
    "files": _MapOf(
        {"bytes": _COUNT, "sha256": _SHA256}, "the name of a file inside the set", is_file_name
    ),
    "sha256?": str,
    "formats?": _MapOf(str),
    "left_out?": {"columns": [str], "files": [str]},
}
