"""Context-frozen training: the context runs once without gradient, the continuation with it.

Phase 1 runs all context tokens but the last under ``no_grad`` and keeps their keys, values and
recurrent states. Phase 2 runs from the last context token on, with gradients, against that cache.
``docs/context-frozen.md`` says what this gradient is and is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from torch.nn.parallel import DistributedDataParallel
from transformers.cache_utils import Cache

from pipeline.errors import UsageError
from pipeline.frozen.model_support import ModelInterface, read_interface, refuse_cache
from pipeline.frozen.readonly_cache import ReadOnlyCache
from pipeline.types import IGNORE_LABEL

# Recurrent layers of transformers take a segment of one token for a decoding step, which they do
# not mask (`create_recurrent_attention_mask`), so padding in it would enter the state.
_MIN_CONTEXT_WIDTH = 2


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
    another layout.

    Example::

        batch = ContextFrozenCollator("split")(rows)
        context_frozen_loss(model, batch).backward()
    """
    if isinstance(num_items, int | float) and not num_items > 0:
        raise UsageError(f"num_items is {num_items}; expected the positive count_items of the step")
    logits = continuation_logits(model, batch)
    labels = batch["labels"].to(logits.device)
    token_losses = cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        ignore_index=IGNORE_LABEL,
        reduction="none",
    )
    weights = batch["weights"].to(logits.device)
    weighted = (token_losses.view(len(labels), -1).sum(dim=1) * weights).sum()
    return weighted / (count_items(batch) if num_items is None else num_items)


def count_items(batch: Mapping[str, Any]) -> Tensor:
    """Return the sum of weight x trained tokens of a batch: the denominator of its loss.

    float32 [], never 0, on the batch's device, so that nothing waits for it.
    """
    trained = (batch["labels"] != IGNORE_LABEL).sum(dim=1)
    return (trained * batch["weights"]).sum().clamp(min=torch.finfo(torch.float32).tiny)


def continuation_logits(model: torch.nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Return the logits [K, R, vocabulary] of both phases; column 0 predicts the continuation's
    first token.
    """
    interface = read_interface(model)
    batch = _widen_context(_check_layout(batch))
    cache = _freeze_context(model, interface, batch)
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


@torch.no_grad()
def two_phase_error(model: torch.nn.Module, batch: Mapping[str, Any]) -> float:
    """Return the largest difference between the two-phase logits and those of one full forward.

    About 1e-6 in float32 where the model continues its cache exactly; run it once before training
    an architecture that ``docs/context-frozen.md`` does not list. Dropout is off meanwhile.
    """
    interface = read_interface(model)
    batch = _check_layout(batch)
    rows = batch.get("context_index", torch.arange(len(batch["input_ids"])))
    joined = [
        torch.cat([batch[f"context_{name}"][rows], batch[name]], dim=1)
        for name in ("input_ids", "position_ids")
    ]
    was_training = model.training
    model.eval()
    try:
        full = model(
            **interface.select_inputs(joined[0], batch["attention_mask"], joined[1]),
            use_cache=False,
            return_dict=True,
        ).logits[:, -batch["input_ids"].shape[1] :]
        difference = (continuation_logits(model, batch) - full).abs().amax(dim=-1)
    finally:
        model.train(was_training)
    real = batch["attention_mask"][:, -batch["input_ids"].shape[1] :].bool()
    return difference[real].max().item()


def _check_layout(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    if "context_input_ids" not in batch:
        raise UsageError(
            f"the batch holds {', '.join(sorted(batch))}; expected the split or grouped layout: "
            'collate with ContextFrozenCollator(layout="split")'
        )
    return batch


def _widen_context(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the batch with a context block of at least two columns, masked ones added in front.

    So an empty frozen part needs no path of its own, and every rank runs both phases, without which
    FSDP would wait forever.
    """
    missing = _MIN_CONTEXT_WIDTH - batch["context_input_ids"].shape[1]
    if missing <= 0:
        return batch
    names = [name for name in batch if name.startswith("context_") and name != "context_index"]
    widened = {name: pad(batch[name], (missing, 0)) for name in [*names, "attention_mask"]}
    return {**batch, **widened}


@torch.no_grad()
def _freeze_context(
    model: torch.nn.Module, interface: ModelInterface, batch: Mapping[str, Any]
) -> Cache:
    """Run phase 1 and return its cache: no gradient, and no logits but one token's."""
    # DDP synchronises buffers at each forward, and phase 1 has nothing to reduce.
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    output = inner(
        **interface.select_inputs(
            batch["context_input_ids"],
            batch["context_attention_mask"],
            batch["context_position_ids"],
        ),
        **interface.least_logits,
        use_cache=True,
        return_dict=True,
    )
    if torch.is_autocast_enabled(batch["input_ids"].device.type):
        # Before pytorch PR 165068 (late 2025), autocast kept the weights that it cast here, which
        # have no gradient, and phase 2 trained nothing through them.
        torch.clear_autocast_cache()
    cache = output.get(interface.cache_name)
    refuse_cache(model, cache)
    return cast("Cache", cache)
