"""Reading a set that another job may be replacing: all of one set, never half of two.

A job puts its set in the place of another in one step, so a reader that opens files by their names may
get some of each. What was at the name before and after the reading tells: where it is not the same, the
reading is done again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from pipeline.errors import DataRefused
from pipeline.lines.bounded_json import NotThatJson, read_content
from pipeline.sets.copies import find_folder
from pipeline.sets.place import MANIFEST

_ATTEMPTS: Final = 10

Found = TypeVar("Found")


def read_one_set(path: str | Path, read: Callable[[Path], Found]) -> Found:
    """Return what ``read`` makes of the folder of the set at ``path`` (or of a copy, on a store).

    Whatever it returns or raises counts only where the folder was of one set from its begin to its end.
    Raises `DataRefused` where it is replaced each time.
    """
    for _ in range(_ATTEMPTS):
        folder = find_folder(path)
        before = _identify(folder)
        try:
            found = read(folder)
        except Exception:
            # Of a set that is whole it is the reader's to say what is wrong.
            if _identify(folder) == before:
                raise
            continue
        if _identify(folder) == before:
            return found
    raise DataRefused(f"{path}: was replaced {_ATTEMPTS} times while it was read; try again later")


def _identify(folder: Path) -> tuple[int, int, bytes] | None:
    """Return what tells one set at a name from the next, or None where there is none."""
    try:
        status = folder.stat()
        return status.st_dev, status.st_ino, read_content(folder / MANIFEST)
    except (OSError, NotThatJson):
        return None
