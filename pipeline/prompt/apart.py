"""A process apart, in which templates run within limits, and which can be killed.

It is forked when it is needed, so that it has the libraries loaded, and ends by itself when it was
not needed for some seconds: what it shares with its parent would else be kept for as long as it lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import multiprocessing
import os
import pickle
import resource
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from threading import Lock
from typing import Any, Final, Literal, NamedTuple, NoReturn

from pipeline.errors import WorkerFailed

IDLE_SECONDS: Final = 5.0
_SILENT_SECONDS: Final = 600.0
_ENDING_SECONDS: Final = 0.2
_LONGEST_WORDS: Final = 1000
_LIBC: Final[Any] = ctypes.CDLL(None)
_PR_SET_PDEATHSIG: Final = 1

Within = Callable[[float, int], AbstractContextManager[None]]


class Outcome(NamedTuple):
    """What became of a call apart: its value, the words of its error, or how it broke the limits.

    ``gone``: nothing, because the process ended before it heard of the call.
    """

    kind: Literal["returned", "raised", "stopped", "gone"]
    value: Any
    seconds: float = 0.0


class ProcessApart:
    """Runs functions of modules in a child process, one at a time.

    ``errors`` are those that a function may raise; the caller gets their words. ``within`` keeps a
    block to seconds and bytes: `MemoryError`, or an end by SIGPROF.
    """

    def __init__(self, errors: tuple[type[Exception], ...], within: Within) -> None:
        self._errors = errors
        self._within = within
        self._lock = Lock()
        self._pid = 0
        self._pipe: Connection | None = None

    def run(
        self, function: Callable[..., Any], args: tuple[Any, ...], seconds: float, memory: int
    ) -> Outcome:
        """Return what became of ``function(*args)`` within ``seconds`` of CPU time and ``memory``.

        Raises `WorkerFailed` where no process can be started.
        """
        call = pickle.dumps((function, args, seconds, memory), pickle.HIGHEST_PROTOCOL)
        with self._lock:
            try:
                outcome = self._ask(call, seconds)
                while outcome.kind == "gone":
                    outcome = self._ask(call, seconds)
            except BaseException:
                # What it may still answer would be taken for the next answer.
                self._end()
                raise
            if outcome.kind == "stopped":
                self._end()
            return outcome

    def end(self) -> None:
        """End the process, where there is one."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """Let go of a process that is this one's parent's: called in a fork."""
        self._lock = Lock()
        if self._pipe is not None:
            self._pipe.close()
        self._pid, self._pipe = 0, None

    def _ask(self, call: bytes, seconds: float) -> Outcome:
        pipe = self._pipe or self._start()
        # Where it has ended because nobody asked, its last word lies in the pipe.
        with contextlib.suppress(BrokenPipeError):
            pipe.send_bytes(call)
        try:
            if not pipe.poll(_SILENT_SECONDS):
                return Outcome("stopped", f"gave no answer for {_SILENT_SECONDS:.0f} s")
            outcome: Outcome = pipe.recv()
        except (EOFError, ConnectionResetError):
            return Outcome("stopped", _explain_end(self._end(), seconds))
        if outcome.kind == "gone":
            self._end()
        return outcome

    def _start(self) -> Connection:
        ours, theirs = multiprocessing.Pipe()
        try:
            pid = os.fork()
        except OSError as error:
            raise WorkerFailed(
                f"no process could be started in which to run the chat template: {error}; free "
                "memory, or raise the limit of processes"
            ) from error
        if not pid:
            _serve(theirs, self._errors, self._within)
        theirs.close()
        self._pid, self._pipe = pid, ours
        return ours

    def _end(self) -> int:
        """End the process; return the signal that had ended it, 0 where that cannot be told."""
        if self._pipe is None:
            return 0
        self._pipe.close()
        pid, self._pid, self._pipe = self._pid, 0, None
        # Somebody else in this process may wait for every child.
        with contextlib.suppress(ChildProcessError):
            begun = time.monotonic()
            while True:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
                if time.monotonic() - begun > _ENDING_SECONDS:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.001)
        return 0


def _explain_end(number: int, seconds: float) -> str:
    if number == signal.SIGPROF:
        return f"ran for over {seconds:g} s of CPU time"
    how = f" ({signal.Signals(number).name})" if number else ""
    return f"broke the process that it ran in{how}"


def _serve(pipe: Connection, errors: tuple[type[Exception], ...], within: Within) -> NoReturn:
    """Answer calls until nobody asks any more. Never returns: this is a fork of somebody's process."""
    status = 1
    try:
        _become_plain(pipe.fileno())
        while pipe.poll(IDLE_SECONDS):
            call = pickle.loads(pipe.recv_bytes())  # noqa: S301 (our parent's)
            pipe.send(_answer(call, errors, within))
        pipe.send(Outcome("gone", None))
        status = 0
    except (EOFError, OSError):
        status = 0
    finally:
        os._exit(status)


def _become_plain(kept: int) -> None:
    """Let go of what this process has of its parent: files, locks, terminal, handlers, objects."""
    if hasattr(_LIBC, "prctl"):
        # A job's children end with the thread that forked them; this one with its pipe.
        _LIBC.prctl(_PR_SET_PDEATHSIG, 0)
    gc.disable()
    gc.freeze()
    faulthandler.disable()
    # Ctrl-C is the parent's, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGPROF, signal.SIGVTALRM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


def _answer(
    call: tuple[Callable[..., Any], tuple[Any, ...], float, int],
    errors: tuple[type[Exception], ...],
    within: Within,
) -> Outcome:
    function, args, seconds, memory = call
    begun = time.process_time()
    try:
        with within(seconds, memory):
            value = function(*args)
    except MemoryError:
        return Outcome("stopped", f"took over {memory >> 20} MiB of memory")
    except errors as error:
        return Outcome("raised", words_of(error), time.process_time() - begun)
    return Outcome("returned", value, time.process_time() - begun)


def words_of(error: Exception) -> str:
    """Return what an error says, as far as it is worth telling."""
    words = str(error) or type(error).__name__
    return words if len(words) <= _LONGEST_WORDS else f"{words[:_LONGEST_WORDS]}…"
