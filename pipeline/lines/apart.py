"""Files of others read in a process of their own, whose memory and silence are bounded.

A Parquet file of 2 KB can hold gigabytes, and a lying Arrow file can kill the process that follows
its offsets. Both end a process here that holds nothing else, and its end is an error for the caller.
The process is kept for the next file, since starting one takes a quarter of a second; without work
it ends by itself.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Final, TypeVar

from pipeline.errors import ContextFrozenError, excerpt_of

MEMORY_BYTES: Final = 2 * 2**30
"""Memory that such a process may have, files that it maps not counted. The largest batches of honest
files are some hundred megabytes."""
SILENCE_SECONDS: Final = 120.0
"""How long it may be at one part of a file. Parts are some megabytes."""

_IDLE_SECONDS: Final = 20.0
_MAIN: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from pipeline.lines.apart import serve; serve(*map(int, sys.argv[2:]))"
)

_Part = TypeVar("_Part")


class EndedApart(Exception):
    """The process died, fell silent, or met what nobody expected; the message says which."""


def run_apart(task: Callable[..., Iterator[_Part]], *args: Any) -> Iterator[_Part]:
    """Yield what ``task(*args)`` yields in a process of its own; all of it must pickle.

    Raises the `ContextFrozenError` that the task raises, and `EndedApart` for every other end.
    """
    process = _take_process()
    is_whole = False
    try:
        process.begin(task, args)
        while (part := process.next_part()) is not None:
            yield part[0]
        is_whole = True
    except ContextFrozenError:
        is_whole = True
        raise
    finally:
        if is_whole:
            _idle.append(process)
        else:
            # Or who asked has seen enough of it.
            process.end()


class _Process:
    """The process as its parent sees it."""

    def __init__(self) -> None:
        self._answers, theirs_out = Pipe(duplex=False)
        theirs_in, self._requests = Pipe(duplex=False)
        fds = theirs_in.fileno(), theirs_out.fileno()
        # It will change its folder, and must find its own modules in each.
        paths = [str(Path(_current_folder() or "/", each)) for each in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _MAIN, json.dumps(paths), *map(str, fds)],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Memory that Arrow's own allocator has reserved would count against the limit.
            env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"},
        )
        theirs_in.close()
        theirs_out.close()
        self._begun = time.monotonic()

    @property
    def is_ready(self) -> bool:
        """True for one that waits and is not just about to end by itself."""
        # It waits since it was done, which may be long before its last part was taken.
        is_fresh = time.monotonic() - self._begun < _IDLE_SECONDS / 2
        return is_fresh and self._process.poll() is None

    def begin(self, task: Callable[..., Iterator[Any]], args: tuple[Any, ...]) -> None:
        """Ask for a task; the one before has ended."""
        self._begun = time.monotonic()
        try:
            # The process was started where its first caller was; paths count from where this one is.
            self._requests.send((_current_folder(), task, args))
        except OSError as error:
            raise EndedApart(self._ending()) from error

    def next_part(self) -> tuple[Any] | None:
        """Return the next part in a tuple, None after the last."""
        kind, value = self._receive()
        if kind == "part":
            return (value,)
        if kind == "end":
            return None
        raise value if isinstance(value, ContextFrozenError) else EndedApart(value)

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        self.forget()

    def forget(self) -> None:
        """Let go of the process, which ends by itself."""
        self._answers.close()
        self._requests.close()
        # Whose child it is no more, as after a fork, waits for it no more.
        self._process.returncode = self._process.returncode or 0

    def _receive(self) -> tuple[str, Any]:
        try:
            if not self._answers.poll(SILENCE_SECONDS):
                raise EndedApart(f"it takes over {SILENCE_SECONDS:.0f} s to read a part of it")
            return self._answers.recv()
        except (EOFError, OSError) as error:
            raise EndedApart(self._ending()) from error

    def _ending(self) -> str:
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            code = 0
        if code < 0:
            return f"reading it ended a process by {signal.Signals(-code).name}"
        return f"reading it ended a process with exit code {code}"


_idle: Final[list[_Process]] = []


def _take_process() -> _Process:
    while _idle:
        process = _idle.pop()
        if process.is_ready:
            return process
        process.forget()
    return _Process()


def _current_folder() -> str | None:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return None


def _forget_processes() -> None:
    while _idle:
        _idle.pop().forget()


# A forked process must not talk to those of its parent.
os.register_at_fork(after_in_child=_forget_processes)
atexit.register(_forget_processes)


def serve(requests_fd: int, answers_fd: int) -> None:
    """Do what the parent asks for, until it is gone or silent: all that the process does."""
    # The parent hears Ctrl-C, and its end is ours.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, answers = Connection(requests_fd), Connection(answers_fd)
    try:
        while requests.poll(_IDLE_SECONDS):
            folder, task, args = requests.recv()
            _answer(folder, task, args, answers)
    except (EOFError, OSError):
        return


def _answer(
    folder: str | None,
    task: Callable[..., Iterator[Any]],
    args: tuple[Any, ...],
    answers: Connection,
) -> None:
    """Send the parts of one task: one is made ahead, and what the pipe holds."""
    try:
        if folder is not None:
            os.chdir(folder)
        for part in task(*args):
            answers.send(("part", part))
    except (EOFError, BrokenPipeError):
        raise
    except ContextFrozenError as error:
        answers.send(("error", error))
    except MemoryError:
        answers.send(("error", f"a part of it takes over {MEMORY_BYTES >> 30} GiB of memory"))
    except Exception as error:  # noqa: BLE001 (nothing goes on here: the parent raises it)
        answers.send(("error", excerpt_of(f"{type(error).__name__}: {error}")))
    else:
        answers.send(("end", None))
