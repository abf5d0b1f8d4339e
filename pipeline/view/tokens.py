"""Rows as coloured tokens on the terminal: the context dimmed, the boundary and control tokens marked.

Text from the data cannot send escapes to the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from rich.text import Text

from pipeline.errors import escape_controls
from pipeline.sets.pieces import BOUNDARY, TokenPiece, show_text, split_row
from pipeline.tokens.encoder import TextEncoder
from pipeline.view.console import SafeConsole

_CONTEXT_STYLES: Final = ("grey50", "grey39")
_CONTINUATION_STYLES: Final = ("black on bright_green", "black on bright_cyan")
_KIND_STYLES: Final = {
    "control": "bold magenta",
    "end": "bold white on magenta",
    "gap": "italic blue",
}


class TokenConsole(SafeConsole):
    """A console that leaves lines as they are: no wrapping."""

    def __init__(self) -> None:
        super().__init__(soft_wrap=True)


def view_row(row: dict[str, Any], encoder: TextEncoder, *, whitespace: bool = False) -> Text:
    """Return a row as styled text, neighbouring tokens in two shades of their part."""
    pieces = split_row(row, encoder)
    return (
        view_context(pieces.context, whitespace=whitespace)
        + view_boundary()
        + view_continuation(pieces.continuation, whitespace=whitespace)
    )


def view_context(pieces: Iterable[TokenPiece], *, whitespace: bool = False) -> Text:
    """Return pieces of a context as dim text."""
    return _style(pieces, _CONTEXT_STYLES, whitespace)


def view_boundary() -> Text:
    """Return the mark between context and continuation."""
    return Text(BOUNDARY, "bold red")


def view_continuation(pieces: Iterable[TokenPiece], *, whitespace: bool = False) -> Text:
    """Return pieces of a continuation as bright text."""
    return _style(pieces, _CONTINUATION_STYLES, whitespace)


def view_head(number: int, row: dict[str, Any]) -> Text:
    """Return what stands above a row: where it came from, its lengths, its flags."""
    text = Text(f"row {number}", style="bold")
    for name, value in describe_origin(row):
        text.append(f"  {name} {value}")
    text.append(f"  {row['context_len']} + {row['total_len'] - row['context_len']} tokens")
    if row["dropped_tokens"]:
        text.append(f"  {row['dropped_tokens']} dropped", "yellow")
    for flag in row.get("flags", ()):
        text.append(f"  {flag}", "yellow")
    return text


def describe_origin(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return by name what a row says of where it came from and why, on one line each."""
    values = {
        "id": row.get("id"),
        "source": row.get("source"),
        "conversation": _unless(row.get("conversation"), row.get("id")),
        "decision_idx": _unless(row.get("decision_idx"), -1),
        "preference": row.get("preference"),
        "weight": _unless(row.get("weight"), 1.0),
        "memories": ", ".join(row.get("memories") or ()),
        "reason": row.get("reason"),
    }
    return [
        (name, escape_controls(str(value)))
        for name, value in values.items()
        if value is not None and value != ""
    ]


def _unless(value: object, usual: object) -> object:
    """Return a value where it says something: nothing for the usual one."""
    return None if value == usual else value


def _style(pieces: Iterable[TokenPiece], shades: tuple[str, str], whitespace: bool) -> Text:
    text = Text()
    for place, piece in enumerate(pieces):
        style = _KIND_STYLES.get(piece.kind, shades[place % 2])
        text.append(show_text(piece, whitespace=whitespace), style)
    return text
