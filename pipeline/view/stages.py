"""What a run is doing, a line for each stage, for somebody who looks on.

Nothing heavy is imported here: the first line stands before all else is loaded.
"""

from __future__ import annotations

import sys
from typing import Final

from pipeline.errors import escape_controls

_MOST_CHARACTERS: Final = 200


class _Stages:
    """Whether stages are shown: by the command, on a terminal; a log file and a library stay quiet."""

    are_shown = False


def show_stages() -> None:
    """Show the stages of this process from now on, where standard error is a terminal."""
    _Stages.are_shown = True


def show_stage(words: str) -> None:
    """Say what is done now."""
    if _Stages.are_shown and sys.stderr.isatty():
        print(
            f"context-frozen: {escape_controls(words)[:_MOST_CHARACTERS]}",
            file=sys.stderr,
            flush=True,
        )
