"""What killed jobs left beside their targets: finished shards, half a set, an old set, a lock.

A job that ends leaves nothing, and the next run of a killed one takes what it can use. Only what has
the mark of a job (`pipeline.sets.marks`) is looked at, and of that only what no process uses is removed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pipeline.errors import UsageError
from pipeline.sets.marks import RUNNING, Mark, mark_of, read_mark
from pipeline.sets.place import Target, remove_marked_folder

# A folder of a job has a number while it is made and removed.
_LEFTOVER: Final = re.compile(r"\.(?P<target>.+)\.(?P<kind>work|lock)(?P<number>-\d+-\d+)?")


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a job left, and the bytes that it takes; ``used`` says why it stays, or nothing."""

    path: Path
    bytes: int
    used: str = ""


def find_leftovers(folder: Path, *, other_machines: bool = False) -> Iterator[Leftover]:
    """Yield what jobs left in ``folder`` and below, sorted by path.

    What a process of another machine made counts as used, unless ``other_machines``: nothing here says
    whether it runs. Raises `UsageError` where there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"clean: {folder}: no such folder; expected the one that holds sets")
    found: list[tuple[Path, Mark]] = []
    for parent, names, files in os.walk(folder.resolve()):
        ours = {
            name: mark
            for name in (*names, *files)
            if (mark := _mark_of_leftover(Path(parent, name))) is not None
        }
        found += [(Path(parent, name), mark) for name, mark in ours.items()]
        names[:] = [name for name in names if name not in ours]
    for path, mark in sorted(found, key=lambda each: each[0]):
        marks = [mark, *_find_tasks(path)]
        used = next(filter(None, (_say_use(each, other_machines) for each in marks)), "")
        yield Leftover(path, _count_bytes(path), used)


def remove_leftovers(folder: Path, *, other_machines: bool = False) -> Iterator[Leftover]:
    """Remove what killed jobs left in ``folder`` and below; yield what went, and what stayed and why.

    An old set whose target is gone is put back and not removed.
    """
    for leftover in list(find_leftovers(folder, other_machines=other_machines)):
        if leftover.used or not os.path.lexists(leftover.path):
            if leftover.used:
                yield leftover
            continue
        yield replace(leftover, used=_remove(leftover.path))


def _remove(path: Path) -> str:
    """Remove a leftover; return why it stayed, or nothing."""
    match = _LEFTOVER.fullmatch(path.name)
    assert match is not None, "found by this pattern"
    target = Target(str(path.with_name(match["target"])), follow_link=False)
    try:
        # Taking the lock puts an old set back whose target is gone, and freeing it removes its file.
        with target.locked():
            if match["kind"] == "work":
                remove_marked_folder(path)
    except UsageError as error:
        return str(error)
    return "it could not be removed" if os.path.lexists(path) else ""


def _mark_of_leftover(path: Path) -> Mark | None:
    match = _LEFTOVER.fullmatch(path.name)
    if match is None:
        return None
    mark = mark_of(path) if match["kind"] == "work" else read_mark(path)
    return mark if mark and Path(mark.target).name == match["target"] else None


def _find_tasks(path: Path) -> Iterator[Mark]:
    """Yield the marks of the tasks that were at work on a job's shards."""
    if path.is_dir():
        for each in path.glob(f"*/{RUNNING}/*.json"):
            if (mark := read_mark(each)) is not None:
                yield mark


def _say_use(mark: Mark, other_machines: bool) -> str:
    if mark.is_running:
        return f"{mark.maker} uses it"
    if not mark.is_of_this_machine and not other_machines:
        return f"of {mark.maker}, another machine; --other_machines removes it too"
    return ""


def _count_bytes(path: Path) -> int:
    if path.is_file():
        return path.lstat().st_size
    files = (each for each in path.rglob("*") if each.is_file() and not each.is_symlink())
    return sum(each.stat().st_size for each in files)
