"""The length policies: a context or a continuation that is too long is shortened, or refused.

``drop_turns``: whole oldest turns go until the rest, rendered again, fits. System messages at the start
and the last user turn stay; a tool call goes with its results; what is kept never begins with a tool's
answer. The server would accept the result as a prompt, though it never served it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import Rejected
from pipeline.rows.table import FittedContext, LengthPolicy
from pipeline.tokens.ids import Ids
from pipeline.types import Message

_PINNED_ROLES = ("system", "developer")
_GUESSES = 4  # cuts that are tried by the sizes of the messages before the rest is halved

EncodeMessages = Callable[[Sequence[Message]], Ids]
"""Messages to the ids of their prompt; raises `Rejected` where the server refuses them."""


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
    kept = drop_turns(messages, room, encode, len(context_ids))
    kept = kept or KeptTurns(context_ids, tuple(messages), 0)
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


@dataclass(frozen=True, slots=True)
class KeptTurns:
    """What is left of a context: its ids, and how many messages went.

    ``messages`` are those that stay.
    """

    ids: Ids
    messages: tuple[Message, ...]
    dropped_messages: int


def find_cuts(messages: Sequence[Message]) -> list[int]:
    """Return the indices at which a kept suffix may begin, in ascending order.

    Up to the last user turn these are the starts of user turns; after it, the assistant messages
    that follow it (the user turn itself is pinned then).

    >>> roles = ["system", "user", "assistant", "user", "assistant", "tool", "assistant", "tool"]
    >>> find_cuts([{"role": role} for role in roles])
    [3, 6]
    """
    roles = [message.get("role") for message in messages]
    first = _count_pinned(messages)
    last_user = _find_last_user(messages)
    cuts: list[int] = []
    for index in range(first + 1, len(messages)):
        if last_user is None or index > last_user:
            # Right after the last user turn nothing between it and the suffix is left to drop.
            if roles[index] == "assistant" and index - 1 != last_user:
                cuts.append(index)
        elif roles[index] == "user" and roles[index - 1] != "user":
            cuts.append(index)
    return cuts


def keep_from(messages: Sequence[Message], cut: int) -> list[Message]:
    """Return the pinned messages and the suffix that begins at ``cut``."""
    pinned = list(messages[: _count_pinned(messages)])
    last_user = _find_last_user(messages)
    if last_user is not None and cut > last_user:
        pinned += messages[_turn_start(messages, last_user) : last_user + 1]
    return [*pinned, *messages[cut:]]


def drop_turns(
    messages: Sequence[Message], room: int, encode: EncodeMessages, whole_len: int
) -> KeptTurns | None:
    """Return the longest kept context of at most ``room`` tokens, or the shortest there is.

    A search over the cuts that begins where, by the sizes of the messages and the ``whole_len``
    tokens of them all, the room ends: two or three renders about as long as the room, however long
    the conversation. A cut that the server refuses counts as one that does not fit. None where
    there is no turn to drop, or the server refuses every cut.
    """
    cuts = find_cuts(messages)
    expect = _Expectation(messages, cuts, whole_len)
    fitting: tuple[int, Ids] | None = None
    shortest: tuple[int, Ids] | None = None
    low, high, tries = 0, len(cuts), 0
    while low < high:
        tries += 1
        middle = expect.first_within(room) if tries <= _GUESSES else (low + high) // 2
        middle = min(max(middle, low), high - 1)
        ids = _encode_if_accepted(encode, keep_from(messages, cuts[middle]))
        if ids is not None:
            expect.learn(middle, len(ids))
            if shortest is None or len(ids) < len(shortest[1]):
                shortest = (cuts[middle], ids)
        if ids is not None and len(ids) <= room:
            fitting, high = (cuts[middle], ids), middle
        else:
            low = middle + 1
    chosen = fitting or shortest
    if chosen is None:
        return None
    cut, ids = chosen
    kept = keep_from(messages, cut)
    return KeptTurns(ids, tuple(kept), len(messages) - len(kept))


class _Expectation:
    """How long each kept context will be: from the last one measured, by the sizes between the two."""

    def __init__(self, messages: Sequence[Message], cuts: Sequence[int], whole_len: int) -> None:
        sizes = np.fromiter(map(_size_of, messages), np.int64, len(messages))
        starts = np.cumsum(sizes) - sizes
        whole = int(sizes.sum())
        self._dropped = starts[np.asarray(cuts, np.int64)]
        self._per_token = max(whole, 1) / max(whole_len, 1)
        self._at, self._len = 0, whole_len

    def first_within(self, room: int) -> int:
        """Return the first cut that is expected to leave at most ``room`` tokens."""
        over = (self._len - room) * self._per_token
        return int(np.searchsorted(self._dropped, self._at + over))

    def learn(self, place: int, length: int) -> None:
        """Take note of how many tokens a cut leaves."""
        self._at, self._len = int(self._dropped[place]), length


def _size_of(message: Message) -> int:
    content = message.get("content")
    size = len(content) if isinstance(content, str) else len(str(content))
    # The other keys of most are short, and cost more to look at than they tell.
    return size + len(str(message["tool_calls"])) if message.get("tool_calls") else size


def cut_inside(ids: Ids, head_len: int, tail_len: int, room: int) -> Ids | None:
    """Return ``ids`` without the tokens after the head that are too many for ``room``.

    None where there is no head, or no token fits between it and the tail.

    >>> cut_inside(np.arange(8, dtype=np.int32), 2, 1, 5)
    array([0, 1, 5, 6, 7], dtype=int32)
    """
    if not head_len or head_len + tail_len >= room:
        return None
    return np.concatenate([ids[:head_len], ids[len(ids) - (room - head_len) :]])


def measure_ends(messages: Sequence[Message], ids: Ids, encode: EncodeMessages) -> tuple[int, int]:
    """Return how many of ``ids``, the prompt of ``messages``, a cut inside must leave alone.

    First those before the oldest turn's content: system messages, tools, its header. Then those
    after the last content: its end of turn and the generation prompt. (0, 0) where it cannot be
    told.
    """
    oldest = _count_pinned(messages)
    if oldest >= len(messages):
        return 0, 0
    # Two other texts for both contents: what all three renderings begin and end with is not theirs.
    head_len = tail_len = len(ids)
    for text in ("\u2021", "0"):
        changed = [*messages]
        for place in (oldest, -1):
            changed[place] = {**messages[place], "content": text}
        other = _encode_if_accepted(encode, changed)
        if other is None:
            return 0, 0
        head_len = min(head_len, _common_len(ids, other))
        tail_len = min(tail_len, _common_len(ids[::-1], other[::-1]))
    return head_len, tail_len


def _common_len(left: Ids, right: Ids) -> int:
    size = min(len(left), len(right))
    different = np.flatnonzero(left[:size] != right[:size])
    return int(different[0]) if len(different) else size


def _encode_if_accepted(encode: EncodeMessages, messages: Sequence[Message]) -> Ids | None:
    try:
        return encode(messages)
    except Rejected:
        return None


def _count_pinned(messages: Sequence[Message]) -> int:
    for index, message in enumerate(messages):
        if message.get("role") not in _PINNED_ROLES:
            return index
    return len(messages)


def _find_last_user(messages: Sequence[Message]) -> int | None:
    places = range(len(messages) - 1, -1, -1)
    return next((place for place in places if messages[place].get("role") == "user"), None)


def _turn_start(messages: Sequence[Message], last_user: int) -> int:
    """Return where the run of user messages that ends at ``last_user`` begins."""
    start = last_user
    while start > 0 and messages[start - 1].get("role") == "user":
        start -= 1
    return start
