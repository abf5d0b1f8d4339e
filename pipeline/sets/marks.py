"""The mark of a job: what it writes into every folder that it makes beside a target, before all else.

What a job removes, and what ``clean`` removes, is known by this mark and never by a name: a folder
that somebody else called ``.SET.work`` has none. The mark also says who made it, so that the folder
of a job that runs is told from that of one that was killed.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Self, cast

MARK: Final = "made-by.json"
"""Name of the mark in a folder; in a lock file the same text is the file."""

RUNNING: Final = "running"
"""Folder among a job's shards with a mark of each task that works there, on whatever machine."""

FORMAT: Final = "context-frozen/job"
_MOST_BYTES: Final = 10_000
_STAT_START: Final = 19
"""Place of the start time among the fields of ``/proc/PID/stat`` behind the command (proc(5): 22)."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Who made something, for which target: machine, process, and when that process was started.

    ``boot`` tells one start of the machine from another, ``started`` one process from a later one of
    the same number; each is empty where the system does not say.
    """

    target: str
    host: str
    boot: str
    pid: int
    started: str

    @classmethod
    def of_this_process(cls, target: Path | str) -> Self:
        """Return the mark that this process leaves."""
        pid = os.getpid()
        return cls(str(target), platform.node(), _boot(), pid, _start_of(pid))

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """Return the mark that ``data`` is, or None where it is none of ours."""
        try:
            values: object = json.loads(data)
        except (ValueError, RecursionError):
            return None
        if not isinstance(values, dict):
            return None
        found = cast("dict[str, Any]", values)
        texts = ("target", "host", "boot", "started")
        is_whole = found.get("format") == FORMAT and type(found.get("pid")) is int
        if not is_whole or not all(isinstance(found.get(name), str) for name in texts):
            return None
        return cls(found["target"], found["host"], found["boot"], found["pid"], found["started"])

    def to_bytes(self) -> bytes:
        """Return the mark as it is written."""
        return (json.dumps({"format": FORMAT, **asdict(self)}) + "\n").encode()

    @property
    def is_of_this_machine(self) -> bool:
        """True where this machine can tell whether the process runs."""
        return self.host == platform.node()

    @property
    def is_running(self) -> bool:
        """True where the process runs on this machine; False for one of another machine too."""
        if not self.is_of_this_machine or self.boot != _boot():
            return False
        try:
            os.kill(self.pid, 0)
        except PermissionError:
            pass
        except (OSError, OverflowError):
            return False
        return _start_of(self.pid) == self.started

    @property
    def is_other_process_running(self) -> bool:
        """True where the process runs and is not this one."""
        return self.is_running and self.pid != os.getpid()

    @property
    def maker(self) -> str:
        """The process in words."""
        return f"process {self.pid} of {self.host}"


def read_mark(path: Path) -> Mark | None:
    """Return the mark in a file, or None where there is none of ours. Links are not followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file, suppress(OSError):
        return Mark.parse(file.read(_MOST_BYTES))
    return None


def mark_of(folder: Path) -> Mark | None:
    """Return the mark of a folder; None for what is no folder, a link to one, or was made by others."""
    return None if folder.is_symlink() else read_mark(folder / MARK)


def write_mark(folder: Path, target: Path | str) -> None:
    """Say that ``folder`` is now of this process."""
    partial = folder / f".{MARK}-{os.getpid()}"
    partial.write_bytes(Mark.of_this_process(target).to_bytes())
    partial.replace(folder / MARK)


def make_marked_folder(folder: Path, target: Path | str) -> None:
    """Make a folder that has its mark from the first moment.

    Raises `OSError`, also where something stands at its name already (an empty folder is taken).
    """
    fresh = find_free_name(folder)
    fresh.mkdir()
    try:
        write_mark(fresh, target)
        fresh.rename(folder)
    except BaseException:
        for name in (MARK, f".{MARK}-{os.getpid()}"):
            (fresh / name).unlink(missing_ok=True)
        with suppress(OSError):
            fresh.rmdir()
        raise


@contextmanager
def marked_as_running(folder: Path, target: Path | str) -> Generator[None]:
    """Say in the folder of a job's shards, for as long as the block takes, that this process works there."""
    running = folder / RUNNING
    running.mkdir(exist_ok=True)
    mark = running / f"{platform.node()}-{os.getpid()}.json"
    mark.write_bytes(Mark.of_this_process(target).to_bytes())
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def find_free_name(folder: Path) -> Path:
    """Return a name beside ``folder`` that is free: ``NAME-PID-0``, or a higher number."""
    numbers = itertools.count()
    names = (folder.with_name(f"{folder.name}-{os.getpid()}-{number}") for number in numbers)
    return next(name for name in names if not os.path.lexists(name))


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """Return when a process was started, in ticks since the boot, or nothing where none says."""
    try:
        # The command stands in brackets and may hold blanks and brackets itself.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[_STAT_START]
    except (OSError, IndexError):
        return ""
