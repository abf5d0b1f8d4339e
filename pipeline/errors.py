"""Errors: one base class, each error also the stdlib error it replaces, all picklable.

A message says where (``file:line``, id), what was found (at most 80 characters), what was
expected and what to do. ``exit_code`` is what the command ends with.
"""

from __future__ import annotations

from typing import Any, Self

EXCERPT_LIMIT = 80
REASON_LIMIT = 600
"""More than any reason of ours has; a template's own words may have megabytes."""
MOST_WORDS = 4000
"""Of an error as a terminal or a log shows it: it may list several reasons."""


def escape_controls(text: str, keep: str = "") -> str:
    r"""Return text with what is not printable, other than ``keep``, written as escapes.

    Text of others (data, templates, file names) cannot move the cursor or colour a terminal then.

    >>> print(escape_controls("a\x1b[31mb\tc"))
    a\x1b[31mb\tc
    """
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode()
        for char in text
    )


def excerpt_of(value: object) -> str:
    """Return ``value`` as text of at most 80 characters that every terminal can show.

    >>> excerpt_of("a\\nb")
    'a\\\\nb'
    """
    text = value if isinstance(value, str) else repr(value)
    head = escape_controls(text[: EXCERPT_LIMIT + 1])
    return head if len(head) <= EXCERPT_LIMIT else head[: EXCERPT_LIMIT - 1] + "…"


def shorten_middle(text: str, most: int = REASON_LIMIT) -> str:
    """Return ``text`` without its middle where it is longer than ``most``: names of others may be long.

    What a message says first and last (what was found, what to do) stays.

    >>> shorten_middle("unknown role 'aaaaaaaaaaaa'; name another", 30)
    "unknown role 'aaaa…ame another"
    """
    if len(text) <= most:
        return text
    head = most * 3 // 5
    return f"{text[:head]}…{text[head + 1 - most :]}"


class ContextFrozenError(Exception):
    """Base of all errors that a user can meet."""

    exit_code = 1


class UsageError(ContextFrozenError, ValueError):
    """The command, its settings or its paths are wrong; nothing was read or written."""

    exit_code = 2


class UnreadableFile(ContextFrozenError, ValueError):
    """A file cannot be read to its end (cut archive, UTF-16, a JSON array, a pretty-printed object).

    The job stops, because a row count would be a guess.
    """

    code = "unreadable_file"

    def __init__(self, file: str, line: int, reason: str) -> None:
        super().__init__(file, line, reason)
        self.file, self.line, self.reason = file, line, reason

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.code}: {self.reason}"


class Rejected(ContextFrozenError, ValueError):
    """One example cannot become a row. Raised inside the pipeline, kept by the job as a ``Reject``.

    ``code`` is one of ``pipeline.types.REJECT_CODES``; ``found`` is shown as a short excerpt.
    """

    def __init__(self, code: str, reason: str, found: object = "") -> None:
        super().__init__(code, reason, found)
        self.code, self.reason, self.excerpt = (
            code,
            shorten_middle(reason),
            excerpt_of(found) if found != "" else "",
        )

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}" + (f" (found {self.excerpt})" if self.excerpt else "")

    def without_frames(self) -> Self:
        """Return the error itself, without the frames that it came through, to be kept.

        They hold all of their batch, and the list that keeps the error too: a cycle, freed late.
        """
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


class DataRefused(ContextFrozenError, ValueError):
    """The data are not fit: more lines were rejected than ``max_reject_rate`` allows, or a set is not
    what its manifest says. Nothing was published.
    """


class HubFailed(ContextFrozenError, OSError):
    """The Hub could not be reached, or did not do what was asked; the message says what to do."""


class StoreFailed(ContextFrozenError, OSError):
    """An object store could not be reached, or refused; what was finished is kept for the next run."""


class WorkerFailed(ContextFrozenError, RuntimeError):
    """A worker process died or fell silent; the message names its shard and the last line read."""


class SealMismatch(ContextFrozenError, ValueError):
    """A saved set is not what its manifest, or the caller's tokenizer or template, says.

    ``key`` names the entry of the seal that differs.
    """

    def __init__(self, key: str, expected: Any, found: Any, remedy: str) -> None:
        super().__init__(key, expected, found, remedy)
        self.key, self.expected, self.found, self.remedy = key, expected, found, remedy

    def __str__(self) -> str:
        return (
            f"{self.key} differs: the set was made with {excerpt_of(self.expected)}, "
            f"found {excerpt_of(self.found)}; {self.remedy}"
        )


class BadRow(ContextFrozenError, ValueError):
    """A saved row cannot be collated: its boundary, length, labels or weight is impossible."""


class UnsupportedModel(ContextFrozenError, TypeError):
    """The model cannot be trained context-frozen as it is; the message says what to change."""
