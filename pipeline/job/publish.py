"""Never half a data set: write beside the target, then exchange the folders in one step.

A killed job leaves the old set whole. What an earlier job left beside the target (its staging
folder, or an old set that was being replaced) is put right at the next start.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import signal
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.bounded_json import NotThatJson, read_object
from pipeline.errors import DataRefused, UsageError
from pipeline.manifest import MANIFEST, read_manifest

SET_FILES = frozenset(
    {
        "dataset_dict.json",
        "rejects.jsonl",
        "examples.sha256",
        "README.md",
        "lengths.png",
        "report.html",
    }
)
"""Files beside the splits of a set, its manifest apart."""

# Numbers of Linux: fcntl.h, fs.h, prctl.h.
_AT_FDCWD, _RENAME_EXCHANGE, _PR_SET_PDEATHSIG = -100, 2, 1
_LIBC = ctypes.CDLL(None, use_errno=True)
# Disks do the work of many files together: a fifth of the time, measured with 2,000 files on ext4.
_DISK_THREADS = 16

_held_locks: dict[int, int] = {}
"""Descriptors of the locks that this process holds, with its id."""


class Target:
    """The output folder and its neighbours: staging, work and lock, all on the same file system."""

    def __init__(self, output: str) -> None:
        # Where the output is a link, the folder that it points to is replaced and the link stays.
        self.path = Path(output).expanduser().resolve()
        parent, name = self.path.parent, self.path.name
        self.staging = parent / f".{name}.staging"
        self.work = parent / f".{name}.work"
        self.streams = self.work / "streams"
        self.rejects = parent / f"{name}.rejects.jsonl"
        self._old = parent / f".{name}.old"
        self._lock = parent / f".{name}.lock"

    @property
    def holds_set(self) -> bool:
        """True where a sealed set stands at the output; others have a file of that name too."""
        try:
            manifest = read_object(self.path / MANIFEST)
        except (OSError, NotThatJson):
            return False
        return "digest" in manifest and "seal" in manifest

    @property
    def location(self) -> Path | str:
        """Where the set will be: its folder, or its address on a store."""
        return self.path

    def read_whole_set(self) -> dict[str, Any] | None:
        """Return the manifest of the set at the output, if none of its files is missing or cut."""
        try:
            manifest = read_manifest(self.path)
            sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
            is_whole = all(
                (self.path / name).stat().st_size == size for name, size in sizes.items()
            )
        except (OSError, UsageError, DataRefused):
            return None
        return manifest if is_whole else None

    def check(self, *, overwrite: bool, inputs: Sequence[str] = ()) -> None:
        """Refuse a target that must not be replaced, or that lies in a folder of ``inputs``.

        Raises `UsageError`.
        """
        for item in inputs:
            folder = Path(item).expanduser().absolute()
            if folder.is_dir() and self.path.resolve().is_relative_to(folder.resolve()):
                raise UsageError(
                    f"output: {self.path} lies in the input folder {item}, where the next run would "
                    "read it as input; choose a folder outside"
                )
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"output: {self.path} is a file; expected a folder or a free name")
        if self.path.is_mount():
            raise UsageError(
                f"output: {self.path} is a mount point, which no folder can take the place of; "
                "choose a folder inside it"
            )
        is_foreign = self.path.is_dir() and any(self.path.iterdir()) and not self.holds_set
        if is_foreign and not overwrite:
            raise UsageError(
                f"output: {self.path} holds something that is not a set of ours; "
                "choose another folder, or --overwrite to replace it"
            )

    def check_sources(self, paths: Iterable[Path]) -> None:
        """Refuse to read what replacing the target would remove. Raises `UsageError`."""
        for path in paths:
            real = path.expanduser().resolve()
            if real == self.rejects or real.is_relative_to(self.path):
                raise UsageError(
                    f"output: {path} is read, and lies where {self.path} is written; "
                    "choose an output apart from the inputs"
                )

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the target for one job; the lock ends with the process, however that ends.

        What was not published is removed at the end; finished shards stay for the next run. Raises
        `UsageError` where another job holds it, or the folder beside it cannot be written.
        """
        descriptor = self._take_lock()
        _held_locks[descriptor] = os.getpid()
        try:
            self.clear_staging()
            yield
        finally:
            self.clear_staging()
            # Unlinked while still held: who opened it meanwhile finds another inode and tries again.
            self._lock.unlink(missing_ok=True)
            _held_locks.pop(descriptor, None)
            os.close(descriptor)

    def _take_lock(self) -> int:
        while True:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise self._not_writable(error) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_ino == self._lock.stat().st_ino:
                    return descriptor
            except FileNotFoundError:
                pass
            except OSError as error:
                os.close(descriptor)
                raise UsageError(
                    f"output: another job is writing {self.path}; wait for it, or choose another output"
                ) from error
            os.close(descriptor)

    def _not_writable(self, error: OSError) -> UsageError:
        return UsageError(
            f"output: {self.path.parent}: {error.strerror}; expected a folder that can be written"
        )

    def open_work(self, name: str) -> Path:
        """Return the folder of this job's shards, with those that a killed job of it had finished.

        What other jobs left is removed. ``name`` tells one job from another. Raises `UsageError`
        where no folder can be made.
        """
        folder = self.work / name
        for path in self.work.iterdir() if self.work.exists() else ():
            if path not in (folder, self.streams):
                shutil.rmtree(path, ignore_errors=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_writable(error) from error
        for path in folder.glob(".*"):
            # A task of a job that was killed may still run, and give its file a name just now.
            path.unlink(missing_ok=True)
        return folder

    def publish(self) -> None:
        """Put the staging folder in the target's place; the old set, if any, is removed after."""
        sync_tree(self.staging)
        if not self.path.exists():
            self.staging.rename(self.path)
        elif not _exchange(self.staging, self.path):
            # No atomic exchange on this file system: `clear_staging` mends a stop between the two.
            self.path.rename(self._old)
            self.staging.rename(self.path)
        sync_file(self.path.parent)
        self.clear()

    def clear(self) -> None:
        """Remove what the job keeps beside the target."""
        self.clear_staging()
        remove_tree(self.work)

    def clear_staging(self) -> None:
        """Remove the set that was not published; finished shards stay for the next run.

        An old set that was moved away for it comes back.
        """
        if self._old.exists() and not self.path.exists():
            self._old.rename(self.path)
        for folder in (self.staging, self._old, self.streams):
            shutil.rmtree(folder, ignore_errors=True)
        # Held nothing but streams.
        with suppress(OSError):
            self.work.rmdir()


def _end_with_the_job() -> None:
    """Leave the lock to the parent, in a child that it forks, and end when the parent does.

    The workers of a killed job would wait for ever, and hold its target as long.
    """
    if not _held_locks:
        return
    (parent, *_) = _held_locks.values()
    for descriptor in _held_locks:
        os.close(descriptor)
    _held_locks.clear()
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # Of a parent that ended before that line no signal comes.
        if os.getppid() != parent:
            os._exit(1)


os.register_at_fork(after_in_child=_end_with_the_job)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder`` to the disk, many at once."""
    below = list(os.walk(folder))
    files = (Path(root) / name for root, _, names in below for name in names)
    with ThreadPoolExecutor(_DISK_THREADS) as disk:
        # Taken one by one, so that an error is raised.
        deque(disk.map(sync_file, files), maxlen=0)
    for root, _, _ in below:
        sync_file(Path(root))


def remove_tree(folder: Path) -> None:
    """Remove a folder and all that is below it, many files at once; what cannot be removed stays."""
    files = [Path(root) / name for root, _, names in os.walk(folder) for name in names]
    with ThreadPoolExecutor(_DISK_THREADS) as disk:
        disk.map(os.unlink, files)
    shutil.rmtree(folder, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(left: Path, right: Path) -> bool:
    """Exchange two paths atomically (Linux renameat2); return False where that can't be done."""
    renameat2 = getattr(_LIBC, "renameat2", None)
    if renameat2 is None:
        return False
    if (
        renameat2(_AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), _RENAME_EXCHANGE)
        == 0
    ):
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(right))
