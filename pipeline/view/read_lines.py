"""How lines were read, in words: by shape, with the keys that nobody read and the answers left unused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pipeline.errors import excerpt_of

_KEYS_SHOWN: Final = 12


def describe_reading(counts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that say it of the counts of a manifest, or of any that have the same keys.

    >>> counts = {"by_format": {"openai": 4210, "trl": 12}, "unread_keys": {"ts": 4210}}
    >>> list(describe_reading(counts))
    ['lines read as: openai 4,210, trl 12', 'keys that nobody reads (lines with them): ts (4,210)']
    """
    formats = ", ".join(f"{name} {number:,}" for name, number in counts["by_format"].items())
    yield f"lines read as: {formats or 'nothing'}"
    unread = sorted(counts["unread_keys"].items(), key=lambda item: (-item[1], item[0]))
    if unread:
        shown = ", ".join(
            f"{excerpt_of(name)} ({number:,})" for name, number in unread[:_KEYS_SHOWN]
        )
        rest = len(unread) - _KEYS_SHOWN
        more = f" and {rest} more" if rest > 0 else ""
        yield f"keys that nobody reads (lines with them): {shown}{more}"
    answers: Mapping[str, int] = counts.get("answers", {})
    if answers and answers["used"] < answers["usable"]:
        yield (
            f"{answers['said']:,} assistant messages, {answers['used']:,} used; "
            f"--decisions all would use {answers['usable']:,}"
        )
