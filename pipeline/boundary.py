"""Context ids and continuation ids become one row: the boundary and the length policies.

The boundary is known by construction (the context's length), never searched for, and labels come
from lengths, never from comparing ids with pad or end-of-sequence tokens.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from pipeline.encode import Ids
from pipeline.errors import Rejected


@dataclass(frozen=True, slots=True)
class LengthPolicy:
    """What may happen to a row that is longer than ``max_len`` tokens."""

    max_len: int
    overlong: str = "drop_turns"
    bos_id: int | None = None

    def context_room(self, continuation_len: int) -> int:
        """Return the tokens left for the context, at least 1.

        Raises `Rejected` (``continuation_too_long``) where the continuation alone does not fit.
        """
        room = self.max_len - continuation_len
        if room < 1:
            raise Rejected(
                "continuation_too_long",
                f"continuation: {continuation_len} tokens leave no room for a context within max_len "
                f"{self.max_len}; raise max_len or shorten it",
            )
        return room


@dataclass(frozen=True, slots=True)
class FittedContext:
    """A context that fits: its ids, the tokens removed from it, and the flags that say so."""

    ids: Ids
    dropped_tokens: int = 0
    dropped_messages: int = 0
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BoundedRow:
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
    return hashlib.sha256(context_ids.astype("<i4", copy=False).tobytes()).hexdigest()[:32]


def fit_context(
    context_ids: Ids, continuation_len: int, policy: LengthPolicy, *, is_raw: bool
) -> FittedContext:
    """Return the context cut to what ``policy`` leaves beside ``continuation_len`` tokens.

    ``is_raw`` says that the context came as text, which can only be cut or rejected. Raises
    `Rejected` (``too_long``, ``continuation_too_long``, ``empty_context``).

    >>> fit_context(np.arange(5, dtype=np.int32), 2, LengthPolicy(4, "cut_left", bos_id=0), is_raw=False).ids
    array([0, 4], dtype=int32)
    """
    if not len(context_ids):
        raise Rejected("empty_context", "context: no token at all; expected at least one")
    room = policy.context_room(continuation_len)
    if len(context_ids) <= room:
        return FittedContext(context_ids)
    if policy.overlong == "reject":
        raise Rejected(
            "too_long",
            f"context {len(context_ids)} + continuation {continuation_len} tokens are over max_len "
            f"{policy.max_len}; raise max_len, or choose overlong: drop_turns or cut_left",
        )
    kept = cut_left(context_ids, room, policy.bos_id)
    flags = ("truncated", "raw_cut") if is_raw else ("truncated",)
    return FittedContext(kept, dropped_tokens=len(context_ids) - len(kept), flags=flags)


def cut_left(context_ids: Ids, room: int, bos_id: int | None) -> Ids:
    """Return the last ``room`` ids; a leading BOS stays, where another token can stay beside it."""
    if bos_id is not None and context_ids[0] == bos_id and room >= 2:
        return np.concatenate([context_ids[:1], context_ids[len(context_ids) - room + 1 :]])
    return context_ids[len(context_ids) - room :]


def join_row(context: FittedContext, continuation_ids: Ids, flags: tuple[str, ...]) -> BoundedRow:
    """Return the row of a fitted context and its continuation, flags sorted and said once."""
    return BoundedRow(
        input_ids=np.concatenate([context.ids, continuation_ids]),
        context_len=len(context.ids),
        dropped_tokens=context.dropped_tokens,
        dropped_messages=context.dropped_messages,
        flags=tuple(sorted({*flags, *context.flags})),
    )
