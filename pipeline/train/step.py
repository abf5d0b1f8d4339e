"""Context-frozen training: the context runs once without gradient, the continuation with it.

Phase 1 runs all context tokens but the last under ``no_grad`` and keeps their keys, values and
recurrent states. Phase 2 runs from the last context token on, with gradients, against that cache.
``docs/training.md`` says what this gradient is and is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from transformers.cache_utils import Cache

from pipeline.errors import BadRow, UsageError
from pipeline.train.batch_checks import (
    check_batch,
    check_conversation,
    measure_rows,
    most_tokens,
    name_rows,
)
from pipeline.train.contexts import cut_parts, freeze_contexts, walk_contexts
from pipeline.train.model_support import (
    ModelInterface,
    read_interface,
    read_position_limit,
    unwrap,
)
from pipeline.train.readonly_cache import ReadOnlyCache
from pipeline.train.rope import find_turning_ropes, refuse_turning_rows
from pipeline.types import IGNORE_LABEL


def context_frozen_loss(
    model: torch.nn.Module, batch: Mapping[str, Any], num_items: float | Tensor | None = None
) -> Tensor:
    """Return the loss of a ``split`` or ``grouped`` batch; backward reaches the continuation only.

    ``sum(weight * token loss) / num_items``, where the sum is over trained continuation tokens and
    ``num_items`` is `count_items` of the whole optimizer step: of all its micro-batches, and of all
    ranks (then multiply the loss by the number of ranks, since DDP and FSDP average gradients).
    Default: of this batch alone.

    Works on a transformers causal LM, as it is or under PEFT, DDP or FSDP, in any precision, with
    or without autocast. Dropout, where the model has some, is on in both phases in training mode.
    Raises `UnsupportedModel` where the two phases would be wrong, `UsageError` for a batch of
    another layout or with ids or positions that are no integers, `BadRow` for rows that are longer
    than the model's positions or have values that no row can have.

    Example::

        batch = ContextFrozenCollator("split")(rows)
        context_frozen_loss(model, batch).backward()
    """
    _refuse_items(num_items)
    weighted = _sum_losses(continuation_logits(model, batch), batch)
    return weighted / (count_items(batch) if num_items is None else num_items)


def frozen_losses(
    model: torch.nn.Module,
    batch: Mapping[str, Any],
    num_items: float | Tensor | None = None,
    *,
    max_tokens: int = 8192,
) -> Iterator[Tensor]:
    """Yield losses that sum to the batch's loss, for one ``backward()`` each.

    Of a ``split`` or ``grouped`` batch the contexts run once. Of a ``conversation`` batch each
    chain of contexts does: its cache grows without gradient from one boundary to the next, where
    the continuations that leave it there run; in a chain, dropout has one mask per context token
    for all rows. Either way as many continuations run at a time as ``max_tokens`` padded tokens
    hold, one at least, and no loss holds activations of more than those.

    Call ``backward()`` on each before the next is asked for, and step the optimizer after the last.
    DDP reduces gradients at the last alone (within a ``no_sync`` of yours not even there), so that
    ranks need not have as many losses; under FSDP they do. Arguments and errors are those of
    `context_frozen_loss`, and errors come at the first loss.

    Example::

        for loss in frozen_losses(model, batch, num_items):
            loss.backward()
    """
    _refuse_items(num_items)
    if max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens}; expected 1 or more")
    if "branch_at" in batch:
        interface = read_interface(model)
        batch = check_conversation(batch)
        _refuse_rows(model, batch)
        parts = walk_contexts(model, interface, batch, max_tokens)
    else:
        interface, batch, cache = _freeze_batch(model, batch)
        parts = cut_parts(batch, cache, max_tokens)
    items = count_items(batch) if num_items is None else num_items
    for part in parts:
        with _hold_gradients(model, part.is_last):
            yield _sum_losses(_read_logits(model, interface, *part[:2]), part.batch) / items


def continuation_log_probs(model: torch.nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the log-probability of each continuation, summed over its trained tokens: float32 [K].

    It is not multiplied by ``weights``, and backward reaches the continuations only, so that losses
    of preferences and policies can be made of it. Arguments and errors are those of
    `context_frozen_loss`; a batch with the worse continuations of pairs is made ``with_rejected``.

    Example, of a pair whose context runs once::

        batch = ContextFrozenCollator("grouped", with_rejected=True)([chosen, rejected])
        margin = continuation_log_probs(model, batch) @ torch.tensor([1.0, -1.0])
    """
    return -_score_continuations(continuation_logits(model, batch), batch)


def count_items(batch: Mapping[str, Any]) -> Tensor:
    """Return the sum of weight x trained tokens of a batch: the denominator of its loss.

    float32 [], never 0, on the batch's device, so that nothing waits for it.
    """
    # The first column is the last context token, whose label nothing predicts.
    trained = (batch["labels"][:, 1:] != IGNORE_LABEL).sum(dim=1)
    return (trained * batch["weights"]).sum().clamp(min=torch.finfo(torch.float32).tiny)


def continuation_logits(model: torch.nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the logits [K, R, vocabulary] of both phases; column 0 predicts the continuation's
    first token.
    """
    interface, batch, cache = _freeze_batch(model, batch)
    return _read_logits(model, interface, batch, cache)


@torch.no_grad()
def two_phase_error(model: torch.nn.Module, batch: Mapping[str, Any]) -> float:
    """Return the largest difference between the two-phase logits and those of each row alone.

    Alone is one forward pass over the row, without cache, padding, mask or positions, so that
    nothing that is wrong with the batch or its positions can be wrong in both. About 1e-6 in
    float32 for a small model that continues its cache exactly, up to 1e-4 for 30 layers; run it once
    before training an architecture that ``docs/training.md`` does not list. Dropout is off
    meanwhile.
    """
    batch = check_batch(batch)
    lengths = measure_rows(batch)
    width = batch["context_input_ids"].shape[1]
    errors: list[float] = []
    keeps_logits = read_interface(model).takes_logits_to_keep
    was_training = model.training
    model.eval()
    try:
        logits = continuation_logits(model, batch)
        for row, (frozen, total) in enumerate(zip(*lengths, strict=True)):
            context = batch["context_index"][row] if "context_index" in batch else row
            live = batch["input_ids"][row, : total - frozen]
            ids = torch.cat([batch["context_input_ids"][context, width - frozen :], live])
            # Of a long context the logits would take more memory than all else.
            last = {"logits_to_keep": len(live)} if keeps_logits else {}
            output = model(input_ids=ids[None], use_cache=False, return_dict=True, **last)
            alone = output.logits[0, -len(live) :]
            errors.append((logits[row, : len(live)] - alone).abs().max().item())
    finally:
        model.train(was_training)
    # Not `max` alone, which would pass over a difference that is no number.
    return float(torch.tensor(errors).max())


def _hold_gradients(model: torch.nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Return a context in which DDP keeps gradients to its rank, until the last of a batch."""
    ranks: Any = model if isinstance(model, DistributedDataParallel) else None
    return nullcontext() if ranks is None or is_last else ranks.no_sync()


def _refuse_items(num_items: float | Tensor | None) -> None:
    # A count on a device is not looked at, which would wait for it.
    is_known = not isinstance(num_items, Tensor) or num_items.device.type == "cpu"
    if num_items is not None and is_known and not 0 < float(num_items) < float("inf"):
        raise UsageError(f"num_items is {num_items}; expected the positive count_items of the step")


def _sum_losses(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Return the sum of weight x token loss over the trained tokens: float32 []."""
    losses = _score_continuations(logits, batch)
    return (losses * batch["weights"].to(losses.device)).sum()


def _score_continuations(logits: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Return the sum of token losses of each row, over its trained tokens: float32 [K]."""
    labels = batch["labels"].to(logits.device, torch.int64)
    token_losses = cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        ignore_index=IGNORE_LABEL,
        reduction="none",
    )
    return token_losses.view(len(labels), -1).sum(dim=1)


def _freeze_batch(
    model: torch.nn.Module, batch: Mapping[str, Any]
) -> tuple[ModelInterface, Mapping[str, Any], Cache]:
    """Return how to call the model, the checked batch, and the cache of its contexts."""
    interface = read_interface(model)
    batch = check_batch(batch)
    _refuse_rows(model, batch)
    return interface, *freeze_contexts(model, interface, batch)


def _read_logits(
    model: torch.nn.Module, interface: ModelInterface, batch: Mapping[str, Any], cache: Cache
) -> Tensor:
    """Run phase 2 and return its logits [K, R, vocabulary]."""
    reader = ReadOnlyCache(cache, batch.get("context_index"))
    output = model(
        **interface.select_inputs(
            batch["input_ids"], batch["attention_mask"], batch["position_ids"]
        ),
        **{interface.cache_name: reader},
        use_cache=True,
        return_dict=True,
    )
    return output.logits


def _refuse_rows(model: torch.nn.Module, batch: Mapping[str, Any]) -> None:
    _refuse_foreign_ids(model, batch)
    _refuse_long_rows(model, batch)


def _refuse_foreign_ids(model: torch.nn.Module, batch: Mapping[str, Any]) -> None:
    """Refuse ids that the model has no embedding of; on a device that would wait, and is left to it."""
    if batch["input_ids"].device.type != "cpu":
        return
    inner: Any = unwrap(model)
    size = getattr(inner.get_input_embeddings(), "num_embeddings", None)
    for name in ("context_input_ids", "input_ids"):
        if size is not None and batch[name].numel() and (found := int(batch[name].max())) >= size:
            raise BadRow(
                f"{name} holds the id {found}, but {type(inner).__name__} has {size} of them; load "
                "the model that the set's tokenizer belongs to, or give the collator a pad_token_id"
            )


def _refuse_long_rows(model: torch.nn.Module, batch: Mapping[str, Any]) -> None:
    """Refuse rows that are longer than the model's positions, or on two sides of a limit in them."""
    inner = unwrap(model)
    limit, ropes = read_position_limit(inner), find_turning_ropes(inner)
    if (limit is None or most_tokens(batch) <= limit) and not ropes:
        return
    lengths = measure_rows(batch)
    long = [place for place, total in enumerate(lengths.total) if total > (limit or total)]
    if long:
        raise BadRow(
            f"{name_rows(long, lengths)}: longer than the {limit} positions of "
            f"{type(inner).__name__}; prepare the set with max_len {limit}, or leave them out"
        )
    # A walk begins with the shortest frozen part of each chain.
    first_pass = min(lengths.frozen) if "branch_at" in batch else max(lengths.frozen)
    refuse_turning_rows(ropes, lengths, first_pass, type(inner).__name__)
