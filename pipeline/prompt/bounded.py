"""Runs of templates within `RenderLimits`, whatever operation they do: templates are untrusted code.

The sandbox keeps a template from reaching anything; it does not keep it from running for ever or
from filling the memory (jinja2's documentation, "Sandbox", says so). No list of operations does:
the limits are kept from outside, by the kernel and by a process that can be killed.

A signal that Python handles cannot interrupt one long operation, so the process that renders must be
one that may die. Workers of a job may: a render there costs four system calls, and where the limits
end it the shard is done again by a worker that renders apart. Everywhere else (the process that the
user started, the lead of a job, a notebook) each run is sent to a process apart, which costs about as
much as the render of a short chat.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from threading import local
from typing import Any, Final, TypeVar

import jinja2

from pipeline.errors import Rejected
from pipeline.prompt.apart import ProcessApart, words_of

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
_PAGE: Final = resource.getpagesize()

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class RenderLimits:
    """What one render may take: seconds of CPU time, bytes of memory beyond those of its process.

    The slowest of 210 public templates takes 0.1 s for a megabyte. ``quick_seconds`` is what a
    worker gives a render before it is ended and the render is done again apart, with ``seconds``.
    """

    seconds: float = 10.0
    memory: int = 2**30
    quick_seconds: float = 2.0


class OverLimit(Rejected):
    """A template took more than `RenderLimits`; it is a reject like any other refusal."""


def over_limit(what: str) -> OverLimit:
    """Return the refusal of a render that ``what``."""
    return OverLimit(
        "template_refused",
        f"the chat template {what}; what it does with this conversation does not come to an end "
        "within the limits, so mend the template",
    )


class KernelLimits:
    """What the kernel keeps this process to: seconds of CPU time, bytes of address space.

    A signal that has no handler ends a process whatever it is doing; a handler of Python's would wait
    for the operation to end.
    """

    def __init__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_AS)
        self._most = [limit for limit in self._before if limit != resource.RLIM_INFINITY]

    def keep(self, seconds: float, memory: int, size: int | None) -> None:
        """Let this process live for ``seconds`` and give it no more than ``memory`` beyond ``size``."""
        if size is not None:
            limit = min([size + memory, *self._most])
            resource.setrlimit(resource.RLIMIT_AS, (limit, self._before[1]))
        signal.setitimer(signal.ITIMER_PROF, seconds)

    def lift(self) -> None:
        """Keep this process to nothing any more."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, self._before)


@contextmanager
def within_limits(seconds: float, memory: int) -> Generator[None]:
    """Keep the block to ``seconds`` of CPU time and ``memory`` beyond what the process has now."""
    limits = KernelLimits()
    limits.keep(seconds, memory, address_space())
    try:
        yield
    finally:
        limits.lift()


def address_space() -> int | None:
    """Return the bytes of address space of this process, None where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (asked often)
            return int(file.read().split()[0]) * _PAGE
    except OSError:
        return None


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
        self._apart = ProcessApart(RENDER_ERRORS, within_limits)
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
