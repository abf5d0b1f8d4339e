"""The terminal, through rich: nothing of the data, of names of files or of settings can act there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from pipeline.errors import escape_controls

LINE_SECONDS: Final = 30.0
"""Where no terminal shows a bar, how often a line says how far the work is."""


class SafeConsole(Console):
    """A console that writes what is not printable as escapes, and reads no markup in a text."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Let the command decide what a closed pipe means; rich would exit with 1."""
        raise BrokenPipeError

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield segments, each without what could move a cursor."""
        for segment in super().render(renderable, options):
            is_safe = segment.control is not None or segment.text.isprintable()
            yield (
                segment
                if is_safe
                else segment._replace(text=escape_controls(segment.text, keep="\n"))
            )
