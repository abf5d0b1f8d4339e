"""How long a template may run and how much it may write: templates are untrusted code.

The sandbox keeps a template from reaching anything; it does not keep it from looping for ever or
from filling the memory (jinja2's documentation, "Sandbox", says so).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from types import FrameType
from typing import Final

from jinja2.exceptions import SecurityError

RENDER_SECONDS: Final = 10
"""CPU time of one render. The slowest of 210 public templates takes 0.1 s for a megabyte."""

RENDER_CHARACTERS: Final = 2**28
"""Text of one render: four times the longest line that is read."""

REPEAT_LIMIT: Final = 2**24
"""Largest number that a template may pad or repeat a text to at once."""


def join_text(pieces: Iterable[str]) -> str:
    """Return the joined pieces of a render. Raises `SecurityError` over `RENDER_CHARACTERS`."""
    held: list[str] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size > RENDER_CHARACTERS:
            raise SecurityError(f"it wrote over {RENDER_CHARACTERS} characters")
    return "".join(held)


class _OutOfTime(BaseException):
    """Raised by the clock; a base exception, so that nothing inside a render takes it for its own."""


class RenderClock:
    """Counts the seconds of CPU time of the render that runs, and stops it after `RENDER_SECONDS`.

    One timer for all renders of a job, because setting one for each would cost as much as a render.
    It works in the main thread, where Python delivers signals; elsewhere renders are not timed.
    """

    def __init__(self) -> None:
        self._seconds: int | None = None

    def run(self, render: Callable[[], str]) -> str:
        """Return what ``render`` returns. Raises `SecurityError` where it takes too long."""
        self._seconds = 0
        try:
            return render()
        except _OutOfTime as error:
            raise SecurityError(f"it ran for over {RENDER_SECONDS} s of CPU time") from error
        finally:
            self._seconds = None

    def start(self) -> None:
        """Time renders from now on, for as long as this process lives."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGVTALRM, self._tick)
            signal.setitimer(signal.ITIMER_VIRTUAL, 1.0, 1.0)

    @contextmanager
    def started(self) -> Generator[None]:
        """Time the renders inside the block; afterwards the process is as it was."""
        is_main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGVTALRM) if is_main else None
        self.start()
        try:
            yield
        finally:
            if is_main:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
                signal.signal(signal.SIGVTALRM, before)

    def _tick(self, number: int, frame: FrameType | None) -> None:
        if self._seconds is not None:
            self._seconds += 1
            if self._seconds > RENDER_SECONDS:
                raise _OutOfTime


RENDER_CLOCK: Final = RenderClock()
"""The clock of this process."""
