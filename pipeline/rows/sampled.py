"""Ids that a server returned (``return_token_ids``): used as they are, once they were checked.

They win over text, because encoding the same text again can give other ids than were sampled; but
the answer that stands beside them must be theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from pipeline.errors import Rejected, excerpt_of
from pipeline.rows.sampled_answer import find_unsaid
from pipeline.tokens.encoder import TextEncoder
from pipeline.tokens.ids import Ids
from pipeline.types import Message


def check_context_ids(ids: Sequence[int], encoder: TextEncoder) -> Ids:
    """Return the ids of a prompt as int32. Raises `Rejected` (``empty_context``, ``bad_ids``)."""
    if not ids:
        raise Rejected("empty_context", "context_ids: empty; expected the ids of the served prompt")
    _refuse_padding("context_ids", ids, encoder, alone=encoder.pads_alone)
    return _check_range("context_ids", ids, encoder.vocabulary_size)


def _refuse_padding(name: str, ids: Sequence[int], encoder: TextEncoder, *, alone: bool) -> None:
    """Refuse ids that begin or end with padding: they are of a batch, not what a server saw.

    ``alone`` says whether one such id is padding already: in an answer it may be what was sampled.
    """
    pad = encoder.pad_id
    if pad is None or pad not in (ids[0], ids[-1]):
        return
    for place, edge in ((0, ids[:2]), (len(ids) - 1, ids[-2:])):
        if list(edge) == [pad, pad] or (alone and ids[place] == pad):
            raise Rejected(
                "bad_ids",
                f"{name}[{place}]: padding, which no server saw or sampled; "
                "expected the ids without it",
                pad,
            )


def check_continuation_ids(
    ids: Sequence[int],
    continuation: str | Message,
    encoder: TextEncoder,
    end_ids: Collection[int],
    *,
    needs_end: bool,
) -> Ids:
    """Return the sampled ids as int32, the token that ends their turn included.

    ``continuation`` is what the example says they stand for: a text (empty where it says nothing),
    or a message, see `find_unsaid`. A server leaves special tokens out of a text
    (``skip_special_tokens``). ``end_ids`` are those at which a turn can end. Raises `Rejected`
    (``empty_continuation``, ``bad_ids``) for ids outside the vocabulary, an end before the last id,
    none at the last where ``needs_end``, and ids that decode to another answer.
    """
    if not ids:
        raise Rejected("empty_continuation", "continuation_ids: empty; expected the sampled ids")
    _refuse_padding("continuation_ids", ids, encoder, alone=False)
    checked = _check_range("continuation_ids", ids, encoder.vocabulary_size)
    body = checked[:-1] if int(checked[-1]) in end_ids else checked
    if needs_end and end_ids and len(body) == len(checked):
        raise Rejected(
            "bad_ids",
            "continuation_ids: their last is no end of turn (a stop id of generation_config.json, or "
            "what the template writes), so the turn was cut; end_of_turn: none trains it as it is",
            ids[-1],
        )
    if not len(body):
        raise Rejected("empty_continuation", "continuation_ids: nothing but the end of turn")
    early = np.flatnonzero(np.isin(body, list(end_ids)))
    if len(early):
        raise Rejected(
            "bad_ids",
            f"continuation_ids[{early[0]}]: an end of turn before the last id",
            int(body[early[0]]),
        )
    decoded = encoder.decode(body)
    if not decoded or decoded.isspace():
        raise Rejected(
            "empty_continuation",
            "continuation_ids: nothing but white space; expected an answer",
            decoded,
        )
    if isinstance(continuation, str):
        _check_text(continuation, checked, body, encoder)
    elif (missing := find_unsaid(continuation, body, encoder)) is not None:
        raise Rejected(
            "bad_ids",
            "continuation_ids: decode to another answer than the message beside them, which says "
            f"{excerpt_of(missing)}",
            decoded,
        )
    return checked


def _check_text(text: str, checked: Ids, body: Ids, encoder: TextEncoder) -> None:
    if text and not {text, encoder.normalise(text)} & _spellings(checked, body, encoder):
        raise Rejected(
            "bad_ids",
            f"continuation_ids: decode to another text than continuation, {excerpt_of(text)}",
            encoder.decode(body),
        )


def _spellings(checked: Ids, body: Ids, encoder: TextEncoder) -> set[str]:
    """Return the texts that a log may give for these ids."""
    special = [encoder.added_tokens[token] for token in encoder.special_tokens]
    shown = body[~np.isin(body, special)]
    return {encoder.decode(ids) for ids in (body, checked, shown)}


def _check_range(name: str, ids: Sequence[int], vocabulary_size: int) -> Ids:
    for place, id_ in enumerate(ids):
        if not 0 <= id_ < vocabulary_size:
            raise Rejected(
                "bad_ids",
                f"{name}[{place}]: expected an id of this tokenizer, below {vocabulary_size}",
                id_,
            )
    return np.array(ids, np.int32)
