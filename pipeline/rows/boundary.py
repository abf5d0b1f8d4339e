"""Context ids and continuation ids become one row: the boundary and the length policies.

The boundary is known by construction (the context's length), never searched for, and labels come
from lengths, never from comparing ids with pad or end-of-sequence tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.errors import Rejected
from pipeline.rows.turns import EncodeMessages, KeptTurns, cut_inside, drop_turns, measure_ends
from pipeline.tokens.ids import EncodedBatch, Ids
from pipeline.types import Message


@dataclass(frozen=True, slots=True)
class LengthPolicy:
    """What may happen to a row that is longer than ``max_len`` tokens.

    ``overlong`` is for contexts (``drop_turns``, ``cut_left``, ``reject``), ``overlong_last_turn``
    for one that is too long without its droppable turns (``cut_left``, ``reject``),
    ``overlong_continuation`` for continuations (``reject``, ``cut_right``) that exceed
    ``max_continuation`` tokens or leave less than ``min_context`` tokens for the context.
    """

    max_len: int
    overlong: str = "drop_turns"
    overlong_last_turn: str = "cut_left"
    overlong_continuation: str = "reject"
    min_context: int = 1
    max_continuation: int | None = None
    bos_id: int | None = None

    def limit_continuation(self, context_len: int) -> int:
        """Return the most tokens of a continuation, its end of turn included.

        A context shorter than ``min_context`` tokens is whole, so it needs no more than itself.
        """
        room = self.max_len - min(self.min_context, context_len)
        return room if self.max_continuation is None else min(room, self.max_continuation)

    def takes(self, context_len: int, continuation_len: int) -> bool:
        """Say whether a context and a continuation of this many tokens fit as they are."""
        fits = 0 < context_len <= self.max_len - continuation_len
        return fits and (self.max_continuation is None or continuation_len <= self.max_continuation)


class FittedContext(NamedTuple):
    """A context that fits: its ids, the tokens removed from it, and the flags that say so."""

    ids: Ids
    dropped_tokens: int = 0
    dropped_messages: int = 0
    flags: tuple[str, ...] = ()


class FittedRow(NamedTuple):
    """A context and a continuation that fit together, and the flags of both but the cut's."""

    context: FittedContext
    continuation_ids: Ids
    flags: tuple[str, ...]


class BoundedRow(NamedTuple):
    """One row of tokens: ``input_ids`` int32 [total_len], of which ``context_len`` are context."""

    input_ids: Ids
    context_len: int
    dropped_tokens: int
    dropped_messages: int
    flags: tuple[str, ...]

    @property
    def total_len(self) -> int:
        """Length of the row in tokens."""
        return len(self.input_ids)

    @property
    def context_hash(self) -> str:
        """See `hash_context`."""
        return hash_context(self.input_ids[: self.context_len])


def hash_context(context_ids: Ids) -> str:
    """Return the first 16 bytes, in hex, of sha256 over the ids as little-endian int32.

    Rows with equal hashes have equal contexts, which a trainer may run once.
    """
    return hashlib.sha256(np.ascontiguousarray(context_ids, "<i4").data).hexdigest()[:32]


def close_continuations(batch: EncodedBatch, end_ids: Sequence[int | None]) -> list[Ids]:
    """Return the ids of each text, the one token that ends its turn behind them where it has one.

    >>> batch = EncodedBatch(np.array([5, 6, 7], np.int32), np.array([0, 2, 3]))
    >>> [ids.tolist() for ids in close_continuations(batch, [9, None])]
    [[5, 6, 9], [7]]
    """
    has_end = np.array([id_ is not None for id_ in end_ids], np.bool_)
    ends = np.array([id_ for id_ in end_ids if id_ is not None], np.int32)
    flat = np.insert(batch.flat, batch.offsets[1:][has_end], ends)
    offsets = batch.offsets.copy()
    offsets[1:] += np.cumsum(has_end)
    return [*EncodedBatch(flat, offsets)]


def fit_continuation(
    ids: Ids, context_len: int, policy: LengthPolicy
) -> tuple[Ids, tuple[str, ...]]:
    """Return a continuation that fits, and its flags: cut from the right it has no end of turn.

    ``context_len`` is that of the whole context. Raises `Rejected` (``continuation_too_long``)
    where the policy says so.
    """
    limit = policy.limit_continuation(context_len)
    if len(ids) <= limit:
        return ids, ()
    if policy.overlong_continuation == "cut_right" and limit >= 1:
        return ids[:limit], ("continuation_cut",)
    cause = "max_continuation" if limit == policy.max_continuation else "max_len"
    raise Rejected(
        "continuation_too_long",
        f"continuation: {len(ids)} tokens, at most {limit} are left to it by {cause}; "
        f"raise {cause}, or choose overlong_continuation: cut_right",
    )


def fit_context(
    context_ids: Ids,
    continuation_len: int,
    policy: LengthPolicy,
    *,
    is_raw: bool,
    messages: Sequence[Message] = (),
    encode: EncodeMessages | None = None,
) -> FittedContext:
    """Return the context shortened to what ``policy`` leaves beside ``continuation_len`` tokens.

    ``is_raw`` says that the context came as text, which can only be cut or rejected; else
    ``messages`` and ``encode`` let turns be dropped. Raises `Rejected` (``too_long``,
    ``empty_context``).

    >>> policy = LengthPolicy(4, "cut_left", bos_id=0)
    >>> fit_context(np.arange(5, dtype=np.int32), 2, policy, is_raw=False).ids
    array([0, 4], dtype=int32)
    """
    if not len(context_ids):
        raise Rejected("empty_context", "context: no token at all; expected at least one")
    room = policy.max_len - continuation_len
    if len(context_ids) <= room:
        return FittedContext(context_ids)
    if policy.overlong == "drop_turns" and not is_raw and encode is not None:
        fitted = _drop_turns(context_ids, room, policy, messages, encode)
    elif policy.overlong == "reject":
        raise _too_long(
            context_ids, continuation_len, policy, "choose overlong: drop_turns or cut_left"
        )
    else:
        kept = cut_left(context_ids, room, policy.bos_id)
        flags = ("truncated", "raw_cut" if is_raw else "turn_cut")
        fitted = FittedContext(kept, len(context_ids) - len(kept), 0, flags)
    if fitted is None:
        raise _too_long(
            context_ids, continuation_len, policy, "choose overlong_last_turn: cut_left"
        )
    if len(fitted.ids) < policy.min_context:
        raise _too_long(context_ids, continuation_len, policy, "lower min_context")
    return fitted


def _drop_turns(
    context_ids: Ids,
    room: int,
    policy: LengthPolicy,
    messages: Sequence[Message],
    encode: EncodeMessages,
) -> FittedContext | None:
    """Return the context without its oldest turns; None where even that is too long to keep whole."""
    kept = drop_turns(messages, room, encode) or KeptTurns(context_ids, tuple(messages), 0)
    ids, flags = kept.ids, ["truncated"]
    if kept.dropped_messages:
        flags.append("turns_dropped")
    if len(ids) > room:
        if policy.overlong_last_turn == "reject":
            return None
        head_len, tail_len = measure_ends(kept.messages, ids, encode)
        inside = cut_inside(ids, head_len, tail_len, room)
        ids = cut_left(ids, room, policy.bos_id) if inside is None else inside
        flags.append("turn_cut")
    dropped_tokens = len(context_ids) - len(ids)
    return FittedContext(ids, dropped_tokens, kept.dropped_messages, tuple(flags))


def _too_long(
    context_ids: Ids, continuation_len: int, policy: LengthPolicy, remedy: str
) -> Rejected:
    return Rejected(
        "too_long",
        f"context {len(context_ids)} + continuation {continuation_len} tokens are over max_len "
        f"{policy.max_len}; raise max_len, or {remedy}",
    )


def cut_left(context_ids: Ids, room: int, bos_id: int | None) -> Ids:
    """Return the last ``room`` ids; a leading BOS stays, where another token can stay beside it."""
    if bos_id is not None and context_ids[0] == bos_id and room >= 2:
        return np.concatenate([context_ids[:1], context_ids[len(context_ids) - room + 1 :]])
    return context_ids[len(context_ids) - room :]


def join_rows(fitted: Sequence[FittedRow]) -> list[BoundedRow]:
    """Return the rows of contexts and continuations, flags sorted and said once.

    The ids of all rows are slices of one array.
    """
    if not fitted:
        return []
    flat = np.concatenate(
        [ids for row in fitted for ids in (row.context.ids, row.continuation_ids)]
    )
    rows: list[BoundedRow] = []
    start = 0
    for context, continuation_ids, flags in fitted:
        context_len = len(context.ids)
        end = start + context_len + len(continuation_ids)
        flags += context.flags
        rows.append(
            BoundedRow(
                flat[start:end],
                context_len,
                context.dropped_tokens,
                context.dropped_messages,
                tuple(sorted({*flags})) if flags else (),
            )
        )
        start = end
    return rows
