"""Self-contained pages: one file, no network, nothing of the data can act in it.

Jinja escapes whatever a template prints; what is not printable is written as escapes before. A
Content-Security-Policy lets no script run but the page's own, which it names by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.errors import UsageError, escape_controls
from pipeline.sets.pieces import TokenPiece, show_text, split_row
from pipeline.tokens.encoder import TextEncoder
from pipeline.view.tokens import describe_origin

_FOLDER: Final = Path(__file__).parent
# Short names, since a page has tens of thousands of tokens.
_ELEMENTS: Final = {"text": "i", "control": "b", "end": "u", "gap": "em"}
_LONGEST_TEXT: Final = 2000
# Pieces of a continuation that a folded row shows.
_PREVIEWED: Final = 24


def render_page(template: str, **values: Any) -> str:
    """Return a page of a template in this folder.

    What is not printable in ``values`` shows as escapes, lone surrogates as well, so that the page
    is always text that UTF-8 can hold.
    """
    return _environment().get_template(template).render(_page_parts() | values)


def write_page(target: Path, page: str) -> None:
    """Write a page. Raises `UsageError` where it cannot be written."""
    try:
        target.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(
            f"html: {target}: {error.strerror}; expected a file that can be written"
        ) from error


def describe_row(
    split: str, number: int, row: dict[str, Any], encoder: TextEncoder, *, most: int | None = None
) -> dict[str, Any]:
    """Return what the macro ``row_card`` shows of a row, its tokens as HTML.

    ``most`` as of `pipeline.sets.pieces.split_row`.
    """
    pieces = split_row(row, encoder, most=most)
    return {
        "split": split,
        "number": number,
        "origin": [(name, shorten(text)) for name, text in describe_origin(row)],
        "flags": row.get("flags", []),
        "context_len": row["context_len"],
        "continuation_len": row["total_len"] - row["context_len"],
        "dropped": row["dropped_tokens"],
        "preview": "".join(show_text(piece) for piece in pieces.continuation[:_PREVIEWED]),
        "context": _mark_up(pieces.context),
        "continuation": _mark_up(pieces.continuation),
    }


def shorten(text: str) -> str:
    """Return the beginning of a text that would fill the page."""
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"


def _mark_up(pieces: Iterable[TokenPiece]) -> Markup:
    """Return pieces as elements, one each, which the style sheet colours in turn."""
    elements = ((_ELEMENTS[piece.kind], escape(show_text(piece))) for piece in pieces)
    return Markup("".join(f"<{name}>{text}</{name}>" for name, text in elements))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_show,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"count": "{:,}".format, "percent": "{:.1%}".format}
    return environment


@cache
def _page_parts() -> dict[str, Any]:
    """Return what every page carries with it."""
    script = (_FOLDER / "page.js").read_text("utf-8")
    return {
        "style": Markup((_FOLDER / "page.css").read_text("utf-8")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def _show(value: Any) -> Any:
    """Return a value as it is printed: text of the data without what could act."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return escape_controls(value, keep="\n\t")
    return value
