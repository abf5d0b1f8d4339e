"""How much one render may take: templates are untrusted code.

The sandbox keeps a template from reaching anything; it does not keep it from running for ever or
from filling the memory (jinja2's documentation, "Sandbox", says so). No list of operations does:
the limits are kept from outside, by the kernel and by a process that can be killed
(`pipeline.prompt.bounded`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from jinja2.exceptions import SecurityError

from pipeline.errors import Rejected


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


CHARACTERS_WRITTEN: Final = 2**22
"""Text that a render may write of its own."""

_CHARACTERS_PER_GIVEN: Final = 4


def join_text(pieces: Iterable[str], given: Mapping[str, Any]) -> str:
    """Return the joined pieces of a render.

    Raises `SecurityError` where they are over `CHARACTERS_WRITTEN` and four times what the template
    was given besides: what is rendered is encoded next, which takes a hundred times its memory.
    """
    held: list[str] = []
    size, most = 0, CHARACTERS_WRITTEN
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size > most:
            if most == CHARACTERS_WRITTEN:
                most += _CHARACTERS_PER_GIVEN * sum(_sizes_of(given))
            if size > most:
                raise SecurityError(f"it wrote over {most} characters")
    return "".join(held)


def _sizes_of(values: object) -> Iterator[int]:
    """Yield the length of every text inside values as JSON has them, and 1 for everything else."""
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield len(value)
        elif isinstance(value, Mapping):
            items = cast("Mapping[object, object]", value)
            waiting += [*items.keys(), *items.values()]
        elif isinstance(value, list | tuple):
            waiting += cast("list[object]", value)
        else:
            yield 1
