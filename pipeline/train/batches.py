"""What a collator hands to a trainer: four layouts, each a dict with named axes.

Axes: ``B`` rows; ``T`` the longest row, in tokens; ``C`` the longest frozen part and ``R`` the
longest last context token + continuation, in tokens; ``G`` distinct frozen parts; ``K``
continuations. Tensors are int64 unless said; labels are unshifted (a label sits in the column of
its own token, so column 0 of a continuation is never trained); masks hold 1 for a real token.
"""

from __future__ import annotations

from typing import Annotated, TypedDict

from torch import Tensor


class JoinedBatch(TypedDict):
    """Context and continuation in one right-padded block, for any trainer."""

    input_ids: Annotated[Tensor, "B T"]
    attention_mask: Annotated[Tensor, "B T"]
    labels: Annotated[Tensor, "B T"]
    position_ids: Annotated[Tensor, "B T"]


class _TwoPhaseBatch(TypedDict):
    context_input_ids: Annotated[Tensor, "G C"]
    context_attention_mask: Annotated[Tensor, "G C"]
    context_position_ids: Annotated[Tensor, "G C"]
    input_ids: Annotated[Tensor, "K R"]
    attention_mask: Annotated[Tensor, "K C+R"]
    labels: Annotated[Tensor, "K R"]
    position_ids: Annotated[Tensor, "K R"]
    num_continuation_tokens: int
    weights: Annotated[Tensor, "K", "float32"]


class SplitBatch(_TwoPhaseBatch):
    """One frozen part per row (``G == K == B``).

    ``context_*`` hold ``ids[:context_len - 1]``, left-padded; the others hold
    ``ids[context_len - 1:]``, right-padded, so that the last context token, which predicts the
    first continuation token, is in the gradient phase. ``attention_mask`` spans both.
    """


class GroupedBatch(_TwoPhaseBatch):
    """Each distinct frozen part once; continuation ``k`` follows number ``context_index[k]``."""

    context_index: Annotated[Tensor, "K"]


class ConversationBatch(TypedDict):
    """Rows whose frozen parts begin one another, each chain of them once, for `frozen_losses`.

    ``context_input_ids`` hold the longest frozen part of each of the ``G`` chains, right-padded;
    continuation ``k`` leaves number ``context_index[k]`` after ``branch_at[k]`` tokens. The
    ``attention_mask`` is that of the continuations.
    """

    context_input_ids: Annotated[Tensor, "G C"]
    context_index: Annotated[Tensor, "K"]
    branch_at: Annotated[Tensor, "K"]
    input_ids: Annotated[Tensor, "K R"]
    attention_mask: Annotated[Tensor, "K R"]
    labels: Annotated[Tensor, "K R"]
    num_continuation_tokens: int
    weights: Annotated[Tensor, "K", "float32"]


Batch = JoinedBatch | SplitBatch | GroupedBatch | ConversationBatch
