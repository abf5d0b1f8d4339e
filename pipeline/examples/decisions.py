"""Decision points: the places in a conversation where a continuation is trained.

Several points may share one example, and several continuations one point; their context is then
rendered and encoded once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, zip_longest
from typing import Final, Literal, NamedTuple

from pipeline.errors import Rejected
from pipeline.examples.example import TrainingExample
from pipeline.types import REJECTED, Message

_MOST_IDS: Final = 20_000_000
"""Ids of all contexts that a masked row may have together."""

Decisions = Literal["given", "all", "last"]


class DecisionPoint(NamedTuple):
    """One row to be: the context ends before ``decision_idx`` (None for a context given as text).

    ``continuation_ids`` are ids that a server sampled and win over ``continuation``; ``preference``
    is empty, ``chosen`` or ``rejected``.
    """

    example: TrainingExample
    decision_idx: int | None
    continuation: str | Message
    continuation_ids: tuple[int, ...] | None = None
    preference: str = ""


def find_decision_points(
    example: TrainingExample, decisions: Decisions = "given", *, keep_rejected: bool = False
) -> list[DecisionPoint]:
    """Return the points of an example, in the order of the conversation.

    ``given``: where the example says, with each of its continuations. ``all``: each assistant
    message whose weight is not 0, ``last``: the last of these, with its own text, or with what the
    example says for that place. A context given as text has one place alone; ids with a mask have
    one for each run of ones. The worse one of a
    pair becomes a point only where ``keep_rejected``.

    >>> talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    >>> [point.decision_idx for point in find_decision_points(TrainingExample.from_dict(
    ...     {"id": "x", "messages": talk * 2}), "all")]
    [1, 3]
    """
    if example.continuation_mask is not None:
        runs = list(_masked_points(example, example.continuation_mask))
        return runs[-1:] if decisions == "last" else runs
    given = _given_points(example, keep_rejected=keep_rejected)
    if decisions == "given" or example.messages is None:
        return given
    by_place = {
        index: [DecisionPoint(example, index, message)]
        for index, message in enumerate(example.messages)
        if _is_decision(example, index)
    }
    by_place[given[0].decision_idx or 0] = given
    places = sorted(by_place) if decisions == "all" else [max(by_place)]
    return [point for place in places for point in by_place[place]]


class AnswerCounts(NamedTuple):
    """Assistant messages of logs: all of them, those that became points, those that ``all`` would use."""

    said: int
    used: int
    usable: int


NO_ANSWERS: Final = AnswerCounts(0, 0, 0)


def count_answers(example: TrainingExample, points: Sequence[DecisionPoint]) -> AnswerCounts:
    """Return how many answers of a log its ``points`` use, so that unused ones can be told of.

    An example with a better continuation in place of what was said is no log: its place was chosen.

    >>> talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    >>> log = TrainingExample.from_dict({"id": "x", "messages": talk * 2})
    >>> count_answers(log, find_decision_points(log))
    AnswerCounts(said=2, used=1, usable=2)
    """
    messages, place = example.messages, example.decision_idx
    if messages is None or place is None or example.rejected is not None:
        return NO_ANSWERS
    if place < len(messages) and example.continuation != {"role": "assistant", **messages[place]}:
        return NO_ANSWERS
    said = {at for at, message in enumerate(messages) if message.get("role") == "assistant"}
    usable = {at for at in said if _is_decision(example, at)} | {place}
    used = {point.decision_idx for point in points}
    # The answer to the whole log stands behind its messages.
    return AnswerCounts(len(said | {place}), len(used), len(usable))


def assign_split(conversation: str, validation_fraction: float) -> str:
    """Return ``train`` or ``validation`` by a hash of the conversation's name.

    The same on every machine, and all rows of a conversation land on one side.
    """
    digest = hashlib.sha256(conversation.encode("utf-8", "surrogatepass")).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "validation" if share < validation_fraction else "train"


def name_split(preference: str, conversation: str, validation_fraction: float) -> str:
    """Return the split of a row: the worse one of a pair is never among those to be trained."""
    if preference == REJECTED:
        return REJECTED
    return assign_split(conversation, validation_fraction) if validation_fraction else "train"


def _given_points(example: TrainingExample, *, keep_rejected: bool) -> list[DecisionPoint]:
    place, preference = example.decision_idx, "" if example.rejected is None else "chosen"
    continuations = example.continuations or [example.continuation]
    sampled = example.continuations_ids or [example.continuation_ids]
    points: list[DecisionPoint] = []
    for continuation, ids in zip_longest(continuations, sampled[: len(continuations)]):
        own_ids = None if ids is None else tuple(ids)
        points.append(DecisionPoint(example, place, continuation, own_ids, preference))
    if example.rejected is not None and keep_rejected:
        points.append(DecisionPoint(example, place, example.rejected, None, "rejected"))
    return points


def _masked_points(example: TrainingExample, mask: list[int]) -> Iterator[DecisionPoint]:
    """Yield a point for each run of ones in a mask: all ids before it are its context."""
    before, ids = example.context_ids or [], example.continuation_ids or []
    edges = [at for at, (one, other) in enumerate(pairwise([0, *mask, 0])) if one != other]
    runs = list(zip(edges[::2], edges[1::2], strict=True))
    if len(runs) * (len(before) + len(ids)) > _MOST_IDS:
        raise Rejected(
            "bad_ids", f"continuation_mask: {len(runs)} runs of ones, too many for a row"
        )
    for begin, end in runs:
        own = replace(
            example,
            context_ids=[*before, *ids[:begin]],
            continuation_ids=ids[begin:end],
            continuation_mask=None,
        )
        yield DecisionPoint(own, None, "", tuple(ids[begin:end]))


def _is_decision(example: TrainingExample, index: int) -> bool:
    """True for an assistant message with something before it and a weight that is not 0."""
    messages, weights = example.messages or [], example.message_weights
    is_assistant = index > 0 and messages[index].get("role") == "assistant"
    return is_assistant and (weights is None or weights[index] != 0)
