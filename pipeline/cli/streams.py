"""What the command says: text that moves no cursor, and streams that may be closed, full or ASCII.

A set that was made stays made where the terminal is gone: what cannot be written is remembered, and the
command says so at its end.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TextIO

from pipeline.errors import escape_controls, excerpt_of

_UTF8: Final = "utf-8"


def say(text: str) -> None:
    """Print text, what is not printable as escapes: names of files, ids and words of others too."""
    print(escape_controls(text, keep="\n"))


def say_json(value: Any) -> None:
    """Print ``value`` as one line of JSON that any terminal can show, and any parser read."""
    text = json.dumps(value, ensure_ascii=not _speaks_utf8(sys.stdout))
    if not text.isprintable():
        # JSON leaves C1 controls, marks of direction and lone surrogates as they are.
        text = "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)
    print(text)


def say_fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say in one line that the command itself is at fault; how to see all of it; and end with 70.

    No rule of ours lets this happen, so nothing here says what was done.
    """
    if os.environ.get("CONTEXT_FROZEN_TRACEBACK"):
        sys.__excepthook__(kind, error, trace)
    else:
        frames = traceback.extract_tb(trace)
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        words = excerpt_of(str(error))
        print(
            f"context-frozen: a fault of context-frozen itself: {kind.__name__} at {place}: {words}; "
            "CONTEXT_FROZEN_TRACEBACK=1 shows all of it: please report it",
            file=sys.stderr,
        )
    sys.exit(70)


class SafeFormatter(logging.Formatter):
    """Writes log lines with what is not printable as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return escape_controls(super().format(record), keep="\n")


class _LastingFile(io.RawIOBase):
    """A file descriptor whose first failure is kept; what comes after it goes nowhere."""

    def __init__(self, descriptor: int, failure: OSError | None, ends_with_reader: bool) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._ends_with_reader = ends_with_reader
        self.failure = failure

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        if self.failure is None:
            try:
                return os.write(self._descriptor, view)
            except OSError as error:
                self.failure = error
                if self._ends_with_reader and isinstance(error, BrokenPipeError):
                    raise
        return view.nbytes


class Streams:
    """Standard output and error of this process, so that neither can end it."""

    def __init__(self, *, ends_with_reader: bool) -> None:
        """Take the place of `sys.stdout` and `sys.stderr`.

        With ``ends_with_reader``, a standard output that nobody reads any more raises `BrokenPipeError`
        once; else what is done goes on.
        """
        closed = {number for number in (0, 1, 2) if _open_nowhere(number)}
        self._files = {
            number: _LastingFile(
                number,
                OSError("it is closed") if number in closed else None,
                ends_with_reader and number == 1,
            )
            for number in (1, 2)
        }
        sys.stdout = self._wrap(1, sys.stdout)
        sys.stderr = self._wrap(2, sys.stderr)

    def flush(self) -> OSError | None:
        """Write what is left, and return why not all of standard output could be written, if so."""
        sys.stdout.flush()
        sys.stderr.flush()
        return self._files[1].failure

    def _wrap(self, number: int, stream: TextIO | None) -> TextIO:
        file = self._files[number]
        return io.TextIOWrapper(
            io.BufferedWriter(file),
            encoding=stream.encoding if stream else _UTF8,
            # A text that the terminal's encoding lacks is shown as escapes.
            errors="backslashreplace",
            line_buffering=number == 2 or file.isatty(),
        )


def _open_nowhere(number: int) -> bool:
    """Open a descriptor that is closed on nothing, so that no file of ours gets its number."""
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
        return True
    return False


def _speaks_utf8(stream: TextIO | None) -> bool:
    return (getattr(stream, "encoding", None) or _UTF8).lower().replace("_", "-") in (
        "utf-8",
        "utf8",
    )
