"""The text of token rows in pieces: one for each token, or for several that make one character.

Runs of ordinary tokens are decoded whole and split where the text of a token is complete, so that
characters of several tokens stay intact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from pipeline.errors import escape_controls
from pipeline.tokens.encoder import TextEncoder
from pipeline.tokens.ids import EncodedBatch

Kind = Literal["text", "control", "end", "gap"]

# No character has more bytes, and so no more tokens, than this: a run that is entered in the middle
# of a character reads right from here on.
_LONGEST_CHARACTER: Final = 4
_MARKED_SPACES: Final = str.maketrans({" ": "·", "\t": "→\t", "\n": "⏎\n"})

BOUNDARY: Final = "▌"
"""Stands between context and continuation wherever a row is shown."""


class TokenPiece(NamedTuple):
    """Text of one token, or of several that make one character.

    ``kind`` is ``control`` for a token that is matched as a whole (a special token, a think mark),
    ``end`` for one that ends a continuation, ``gap`` for tokens that are left out.
    """

    text: str
    kind: Kind
    ids: tuple[int, ...]


class RowPieces(NamedTuple):
    """A row in pieces, parted at its boundary."""

    context: list[TokenPiece]
    continuation: list[TokenPiece]


def split_row(
    row: dict[str, Any], encoder: TextEncoder | None, *, most: int | None = None
) -> RowPieces:
    """Return a row in pieces; without an encoder the ids stand for their text.

    Of a part that is longer than ``most`` tokens only the ends are kept, more of them around the
    boundary, with a gap between.
    """
    context, continuation = (
        row["input_ids"][: row["context_len"]],
        row["input_ids"][row["context_len"] :],
    )
    if most is None:
        parts = [split_tokens(context, encoder), split_tokens(continuation, encoder)]
    else:
        few = most // 4
        parts = [
            _split_ends(context, encoder, few, most - few),
            _split_ends(continuation, encoder, most - few, few),
        ]
    pieces = RowPieces(*map(list, parts))
    if encoder and pieces.continuation and pieces.continuation[-1].text in encoder.special_tokens:
        pieces.continuation[-1] = pieces.continuation[-1]._replace(kind="end")
    return pieces


def split_tokens(ids: Sequence[int], encoder: TextEncoder | None) -> Iterator[TokenPiece]:
    """Yield the pieces of ``ids``; without an encoder each is an id and a space."""
    if encoder is None:
        yield from (TokenPiece(f"{id_} ", "text", (id_,)) for id_ in ids)
        return
    control = set(encoder.added_tokens.values())
    run: list[int] = []
    for id_ in ids:
        if id_ in control:
            yield from _split_run(run, encoder)
            run = []
            yield TokenPiece(encoder.decode([id_]), "control", (id_,))
        else:
            run.append(id_)
    yield from _split_run(run, encoder)


def show_text(piece: TokenPiece, *, whitespace: bool = False) -> str:
    r"""Return the text of a piece as it can be shown: what would act on a terminal as escapes.

    >>> show_text(TokenPiece(" a\x1b[0m\n", "text", (1,)), whitespace=True)
    '·a\\x1b[0m⏎\n'
    """
    if piece.kind == "gap":
        return piece.text
    text = escape_controls(piece.text, keep="\n\t")
    return text.translate(_MARKED_SPACES) if whitespace else text


def _split_ends(
    ids: Sequence[int], encoder: TextEncoder | None, first: int, last: int
) -> Iterator[TokenPiece]:
    """Yield the pieces of about ``first`` tokens, a gap, and those of about ``last`` tokens."""
    if len(ids) <= first + last:
        yield from split_tokens(ids, encoder)
        return
    # What is decoded begins and ends in the middle of a character at times: the pieces there go.
    head = list(split_tokens(ids[: first + _LONGEST_CHARACTER], encoder))[:-_LONGEST_CHARACTER]
    tail = list(split_tokens(ids[-last - _LONGEST_CHARACTER :], encoder))[_LONGEST_CHARACTER:]
    left_out = tuple(ids[_count_ids(head) : len(ids) - _count_ids(tail)])
    yield from head
    yield TokenPiece(f" … {len(left_out):,} tokens … ", "gap", left_out)
    yield from tail


def _count_ids(pieces: Iterable[TokenPiece]) -> int:
    return sum(len(piece.ids) for piece in pieces)


def _split_run(run: list[int], encoder: TextEncoder) -> Iterator[TokenPiece]:
    """Yield pieces of a run that, joined, are the run's own text as it reads after other tokens."""
    if not run:
        return
    ids = np.array(run, np.int32)
    alone = encoder.decode_after_context(EncodedBatch(ids, np.arange(len(run) + 1)))

    def text_of(start: int, end: int) -> str:
        if end == start + 1:
            return alone[start]
        batch = EncodedBatch(ids[start:end], np.array([0, end - start]))
        return encoder.decode_after_context(batch)[0]

    def is_complete(piece: str, start: int, end: int) -> bool:
        # A character of which bytes are missing shows as U+FFFD, which the next token fills.
        return "\ufffd" not in piece or len(text_of(start, end + 1)) > len(piece)

    whole = text_of(0, len(run))
    shown, start = 0, 0
    for end in range(1, len(run) + 1):
        piece = text_of(start, end)
        if end == len(run):
            piece = whole[shown:]
        elif not (whole.startswith(piece, shown) and is_complete(piece, start, end)):
            continue
        # A token without text goes with the next one; the last has none.
        if piece or end == len(run):
            yield TokenPiece(piece, "text", tuple(run[start:end]))
            shown, start = shown + len(piece), end
