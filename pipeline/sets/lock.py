"""One job at a time for a target: a locked file beside it, freed by the system when its process ends.

The file holds the mark of who made it (`pipeline.sets.marks`) from its first moment, so that a file of
somebody else that has its name is locked as well, and never removed.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import stat
import tempfile
from pathlib import Path
from typing import Final

from pipeline.errors import UsageError
from pipeline.sets.marks import Mark, read_mark

_PR_SET_PDEATHSIG: Final = 1
"""Linux: prctl.h."""

# What file systems say that can link no file, or none that has no name.
_NO_LINKS: Final = frozenset(
    {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS, errno.EXDEV, errno.ENOENT}
)
# What those say that have no files without a name.
_NO_NAMELESS: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT})

LIBC = ctypes.CDLL(None, use_errno=True)

_held_locks: dict[int, int] = {}
"""Descriptors of the locks that this process holds, with its id."""


def take_lock(path: Path, target: Path) -> int:
    """Return the descriptor of the lock at ``path``, held by this process.

    Raises `UsageError` where another process holds it or what stands there is no file, `OSError` where
    none can be made.
    """
    while True:
        descriptor = _make_lock(path, target)
        if descriptor is None:
            descriptor = _open_lock(path)
        if descriptor is not None:
            _held_locks[descriptor] = os.getpid()
            return descriptor


def free_lock(path: Path, descriptor: int) -> None:
    """End the lock; its file goes where it has our mark."""
    if read_mark(path) is not None:
        # Unlinked while still held: who opened it meanwhile finds another inode and tries again.
        path.unlink(missing_ok=True)
    _held_locks.pop(descriptor, None)
    os.close(descriptor)


def _make_lock(path: Path, target: Path) -> int | None:
    """Return a new lock that is marked and held before it has its name; None where one is there."""
    if os.path.lexists(path):
        return None
    descriptor, temporary = _open_nameless(path)
    try:
        os.write(descriptor, Mark.of_this_process(target).to_bytes())
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        parent = os.open(path.parent, os.O_RDONLY)
        try:
            # With a folder given, Python calls linkat, which follows the link in /proc.
            os.link(temporary or f"/proc/self/fd/{descriptor}", path, src_dir_fd=parent)
        finally:
            os.close(parent)
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EEXIST:
            return None
        if error.errno not in _NO_LINKS:
            raise
        return _make_lock_without_links(path, target)
    except BaseException:
        os.close(descriptor)
        raise
    finally:
        if temporary:
            Path(temporary).unlink()
    return descriptor


def _make_lock_without_links(path: Path, target: Path) -> int | None:
    """Return a new lock whose mark comes a moment after its name; None where one is there."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, Mark.of_this_process(target).to_bytes())
    return descriptor


def _open_nameless(path: Path) -> tuple[int, str]:
    """Return a file in the folder of ``path`` and its name, empty where the system needs none."""
    if hasattr(os, "O_TMPFILE") and Path("/proc/self/fd").is_dir():
        try:
            return os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o644), ""
        except OSError as error:
            if error.errno not in _NO_NAMELESS:
                raise
    return tempfile.mkstemp(prefix=f"{path.name}-", dir=path.parent)


def _open_lock(path: Path) -> int | None:
    """Return the lock that is there, held; None where it went meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise _no_lock(path) from error
    is_held = False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _no_lock(path)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_held = os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        pass
    except BlockingIOError as error:
        raise UsageError(
            f"output: another job is writing {path.parent / path.name[1:].removesuffix('.lock')}; "
            "wait for it, or choose another output"
        ) from error
    finally:
        if not is_held:
            os.close(descriptor)
    return descriptor if is_held else None


def _no_lock(path: Path) -> UsageError:
    return UsageError(
        f"output: {path} is there and is no file, and was not made by context-frozen; move it away, "
        "or choose another output"
    )


def end_with_parent(parent: int) -> None:
    """Let this process be ended as soon as ``parent``, which started it, has ended."""
    if hasattr(LIBC, "prctl"):
        LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # Of a parent that ended before that line no signal comes.
        if os.getppid() != parent:
            os._exit(1)


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
    end_with_parent(parent)


os.register_at_fork(after_in_child=_end_with_the_job)
