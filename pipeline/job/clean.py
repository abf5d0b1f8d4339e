"""What killed jobs left beside their targets: finished shards, half a staging folder, an old set.

A job that ends leaves nothing, and the next run of a killed one takes what it can use. Only what is
certainly ours and of no running job is removed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.errors import UsageError
from pipeline.job.publish import MANIFEST, SET_FILES, Target
from pipeline.types import SPLITS

_LEFTOVER: Final = re.compile(r"\.(?P<target>.+)\.(?P<kind>work|staging|old)")
_WORK_NAME: Final = re.compile(r"[0-9a-f]{16}-[0-9a-f]{8}|streams|pull")
_STAGED_NAMES: Final = SET_FILES | {*SPLITS, MANIFEST}


@dataclass(frozen=True, slots=True)
class Leftover:
    """A folder that a killed job left, and the bytes that it takes."""

    path: Path
    bytes: int


def find_leftovers(folder: Path) -> Iterator[Leftover]:
    """Yield what killed jobs left in ``folder`` and below, sorted by path.

    Raises `UsageError` where there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"clean: {folder}: no such folder; expected the one that holds sets")
    found: list[Path] = []
    for parent, names, _ in os.walk(folder):
        ours = [name for name in names if _is_leftover(Path(parent, name))]
        found += [Path(parent, name) for name in ours]
        names[:] = [name for name in names if name not in ours]
    for path in sorted(found):
        files = (each for each in path.rglob("*") if each.is_file())
        yield Leftover(path, sum(each.stat().st_size for each in files))


def remove_leftovers(folder: Path) -> list[Leftover]:
    """Remove what killed jobs left in ``folder`` and below; return what went.

    What a running job uses stays. An old set whose target is gone is put back and not removed.
    """
    removed: list[Leftover] = []
    for leftover in find_leftovers(folder):
        match = _LEFTOVER.fullmatch(leftover.path.name)
        assert match is not None, "found by this pattern"
        target = Target(str(leftover.path.parent / match["target"]))
        try:
            # Taking the lock puts an old set back whose target is gone, and removes half a set.
            with target.locked():
                shutil.rmtree(leftover.path, ignore_errors=True)
        except UsageError:
            # Another job holds the target.
            continue
        removed.append(leftover)
    return removed


def _is_leftover(path: Path) -> bool:
    match = _LEFTOVER.fullmatch(path.name)
    if match is None:
        return False
    names = [each.name for each in path.iterdir()]
    match match["kind"]:
        case "work":
            return all(_WORK_NAME.fullmatch(name) for name in names)
        case "staging":
            return _STAGED_NAMES.issuperset(names)
        case _:
            return MANIFEST in names
