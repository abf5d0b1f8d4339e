"""Runs of templates within `RenderLimits`, whatever operation they do.

A signal that Python handles cannot interrupt one long operation, so the process that renders must be
one that may die. Workers of a job may: a render there costs four system calls, and where the limits
end it the shard is done again by a worker that renders apart. Everywhere else (the process that the
user started, the lead of a job, a notebook) each run is sent to a process apart, which costs about as
much as the render of a short chat.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import lru_cache
from threading import local
from typing import Any, Final, TypeVar

import jinja2

from pipeline.errors import Rejected
from pipeline.prompt.apart import KernelLimits, ProcessApart, address_space, words_of
from pipeline.prompt.limits import OverLimit, RenderLimits, over_limit

RENDER_ERRORS: Final = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
"""What a template can raise when it runs on data it was not written for; jinja2 lets the Python error
of an expression through as it is."""

DEATHS: Final = frozenset({signal.SIGPROF, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT})
"""Signals by which a worker ends where a template breaks the limits, or the interpreter."""

# The address space changes slowly, and asking for it costs more than the limits.
_RUNS_PER_LOOK: Final = 256

_Result = TypeVar("_Result")


def _do_nothing() -> None:
    pass


class _Point(local):
    """What this thread works at: whether it broke the limits, and what it has left of a shared time."""

    over: OverLimit | None = None
    left: float | None = None


class BoundedRuns:
    """Runs functions of untrusted templates: here, where this process may die of it, or apart.

    After a run over the limits, further ones for the same decision point (`begin_point`) or in the
    same `limited` block are refused at once: one point waits for the limits once.
    """

    def __init__(self) -> None:
        self.limits = RenderLimits()
        self.on_over: Callable[[], None] = _do_nothing
        """Called after each run over the limits; what it raises ends what is being done."""
        self._apart = ProcessApart(RENDER_ERRORS)
        self._point = _Point()
        self._kernel: KernelLimits | None = None
        self._looks_in = 0
        self._size: int | None = None

    def run(self, function: Callable[..., _Result], *args: Any) -> _Result:
        """Return ``function(*args)``; a function of a module, for which a template's code runs.

        Raises `Rejected` (``template_refused``) with the words of what it raises, `OverLimit` where it
        takes more than the limits.
        """
        over = self._point.over
        if over is not None:
            raise over.without_frames()
        if self._kernel is None:
            return self._run_apart(function, args)
        if not self._looks_in:
            self._looks_in, self._size = _RUNS_PER_LOOK, address_space()
        self._looks_in -= 1
        try:
            self._kernel.keep(self.limits.quick_seconds, self.limits.memory, self._size)
            try:
                return function(*args)
            finally:
                self._kernel.lift()
        except MemoryError:
            # Or the process had grown since the last look; what a process apart says holds.
            self._looks_in = 0
        except RENDER_ERRORS as error:
            raise _refusal_of(words_of(error)) from error
        return self._run_apart(function, args)

    def _run_apart(self, function: Callable[..., _Result], args: tuple[Any, ...]) -> _Result:
        point = self._point
        seconds = self.limits.seconds if point.left is None else point.left
        outcome = self._apart.run(function, args, seconds, self.limits.memory)
        if point.left is not None:
            point.left = max(0.001, point.left - outcome.seconds)
        if outcome.kind == "returned":
            return outcome.value
        if outcome.kind == "raised":
            raise _refusal_of(outcome.value)
        point.over = over_limit(outcome.value)
        self.on_over()
        raise point.over

    def begin_point(self) -> None:
        """Forget a run over the limits: the next runs are for another decision point."""
        if self._point.left is None:
            self._point.over = None

    @contextmanager
    def limited(self) -> Generator[None]:
        """Let all runs inside take together what one may take: the probes of a template.

        Raises `OverLimit` at the end where they took more, because what was learnt is then worth
        nothing.
        """
        point = self._point
        before = point.over, point.left
        point.over, point.left = None, self.limits.seconds
        try:
            yield
            if point.over is not None:
                raise point.over.without_frames()
        finally:
            point.over, point.left = before

    @contextmanager
    def use_limits(self, limits: RenderLimits) -> Generator[None]:
        """Run under other limits inside the block, in processes that are forked there too."""
        before, self.limits = self.limits, limits
        try:
            yield
        finally:
            self.limits = before

    def use_this_process(self) -> None:
        """Run in this process from now on: one that may die, and whose parent knows what to do."""
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        self._kernel = KernelLimits()

    def end(self) -> None:
        """End the process apart, where there is one."""
        self._apart.end()

    def forget_parent(self) -> None:
        """Begin anew in a fork."""
        self._apart.forget()
        self._kernel = None


BOUNDED_RUNS: Final = BoundedRuns()
"""The runs of this process."""

os.register_at_fork(after_in_child=BOUNDED_RUNS.forget_parent)


def read_source(function: Callable[[str], _Result], source: str) -> _Result:
    """Return what a function reads off the text of a template; it is asked once for each text.

    Raises what `BoundedRuns.run` raises, and again at every time.
    """
    found = _read_once(BOUNDED_RUNS.limits, function, source)
    if isinstance(found, OverLimit):
        raise found.without_frames()
    return found


@lru_cache(maxsize=256)
def _read_once(
    limits: RenderLimits, function: Callable[[str], _Result], source: str
) -> _Result | OverLimit:
    del limits
    try:
        with BOUNDED_RUNS.limited():
            return BOUNDED_RUNS.run(function, source)
    except OverLimit as error:
        return error.without_frames()


def _refusal_of(words: str) -> Rejected:
    return Rejected("template_refused", f"the chat template raised: {words}")
