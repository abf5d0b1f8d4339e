"""The manifest of a set, read: the one reader, and strict, since a set may be anybody's.

What other modules take from a manifest has the type and the bounds that are checked here; keys that
are not known here, of a newer version, are let through. A newer *format* is refused by its number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

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
_MOST: Final = 2**63 - 1
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_LONGEST_NAME: Final = 1000


class _Unexpected(ValueError):
    """A value that is not what a manifest has there: its place, what is right, what was found."""


_Check = Callable[[object, str], None]


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
        _MANIFEST(values, "")
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


def _check_format(seal: object) -> None:
    if not isinstance(seal, dict):
        raise _unexpected("seal", "an object", seal)
    found = cast("dict[str, object]", seal).get("format")
    _integer(1)(found, "seal.format")
    if cast("int", found) > SEAL_FORMAT:
        raise _Unexpected(
            f"seal.format: found {excerpt_of(found)}, made by a newer context-frozen; this one reads "
            f"up to {SEAL_FORMAT}: upgrade it"
        )


def _check_sums(counts: Mapping[str, Any]) -> None:
    splits: Mapping[str, int] = counts["rows_by_split"]
    if sum(splits.values()) != counts["rows"]:
        raise _Unexpected(
            f"counts.rows_by_split: {sum(splits.values())} rows in all, counts.rows is {counts['rows']}"
        )


def _unexpected(at: str, expected: str, found: object) -> _Unexpected:
    return _Unexpected(f"{at}: found {excerpt_of(found)}; expected {expected}")


def _integer(least: int, most: int = _MOST) -> _Check:
    def check(value: object, at: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise _unexpected(at, f"a whole number from {least}", value)

    return check


def _text(value: object, at: str) -> None:
    if not isinstance(value, str):
        raise _unexpected(at, "text", value)


def _optional(check: _Check) -> _Check:
    return lambda value, at: None if value is None else check(value, at)


def _flag(value: object, at: str) -> None:
    if not isinstance(value, bool):
        raise _unexpected(at, "true or false", value)


def _matching(pattern: re.Pattern[str], expected: str) -> _Check:
    def check(value: object, at: str) -> None:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise _unexpected(at, expected, value)

    return check


def _one_of(*choices: str) -> _Check:
    def check(value: object, at: str) -> None:
        if value not in choices:
            raise _unexpected(at, " or ".join(choices), value)

    return check


def _list(check: _Check) -> _Check:
    def check_all(value: object, at: str) -> None:
        if not isinstance(value, list):
            raise _unexpected(at, "a list", value)
        for number, item in enumerate(cast("list[object]", value)):
            check(item, f"{at}[{number}]")

    return check_all


def _map(check: _Check, check_name: _Check | None = None) -> _Check:
    def check_all(value: object, at: str) -> None:
        if not isinstance(value, dict):
            raise _unexpected(at, "an object", value)
        for name, item in cast("dict[str, object]", value).items():
            if check_name is not None:
                check_name(name, at)
            check(item, f"{at}.{excerpt_of(name)}")

    return check_all


def _object(
    required: Mapping[str, _Check],
    optional: Mapping[str, _Check] | None = None,
) -> _Check:
    """Return the check of an object with known keys; others may stand beside them."""

    def check(value: object, at: str) -> None:
        if not isinstance(value, dict):
            raise _unexpected(at, "an object", value)
        found = cast("dict[str, object]", value)
        for name, each in required.items():
            if name not in found:
                raise _Unexpected(f"{at}.{name}: missing".lstrip("."))
            each(found[name], f"{at}.{name}".lstrip("."))
        for name, each in (optional or {}).items():
            if name in found:
                each(found[name], f"{at}.{name}".lstrip("."))

    return check


def _file_name(value: object, at: str) -> None:
    if not is_file_name(str(value)):
        raise _unexpected(at, "the name of a file inside the set", value)


def _split_name(value: object, at: str) -> None:
    if not is_split_name(str(value)):
        raise _unexpected(at, "the name of a split", value)


_count = _integer(0)
_sha256 = _matching(_SHA256, "64 hexadecimal digits")
_counts_by_name = _map(_count)


_SEAL: Final = _object(
    {
        "format": _integer(1),
        "key": _sha256,
        "input": _list(_object({"name": _text, "sha256": _text})),
        "tokenizer": _object(
            {
                "files": _map(_text),
                "class": _text,
                "vocabulary_size": _integer(1, 2**31),
                "backend_sha256": _sha256,
            }
        ),
        "chat_template": _optional(_text),
        "server": _object({"name": _text, "version": _text}),
        "settings": _object(
            {
                "columns": _one_of("full", "train"),
                "max_len": _integer(2, 2**31),
                "overlong": _text,
                "server": _text,
            }
        ),
        "versions": _map(_text),
        "templates": _map(_text),
    }
)
_COUNTS: Final = _object(
    {
        **dict.fromkeys(("lines", "points", "rows", "rejects", "faults", "blank_lines"), _count),
        **dict.fromkeys(("rows_as_served", "rows_shortened", "dropped_messages"), _count),
        "rows_by_split": _map(_count, _split_name),
        "by_code": _counts_by_name,
        "by_flag": _counts_by_name,
        "tokens": _object(
            dict.fromkeys(("total", "context", "continuation", "dropped"), _count),
        ),
    }
)
_CONFIG: Final = _object(
    {
        "input": _list(_text),
        "tokenizer": _text,
        "output": _text,
        "columns": _one_of("full", "train"),
    },
    {
        "report": _flag,
        "chat_template": _optional(_text),
        "license": _optional(_text),
        "pretty_name": _optional(_text),
        "language": _list(_text),
    },
)
_MANIFEST: Final = _object(
    {
        "digest": _sha256,
        "seal": _SEAL,
        "counts": _COUNTS,
        "config": _CONFIG,
        "files": _map(_object({"bytes": _count, "sha256": _sha256}), _file_name),
    },
    {
        "sha256": _text,
        "formats": _map(_text),
        "left_out": _object({"columns": _list(_text), "files": _list(_text)}),
    },
)
