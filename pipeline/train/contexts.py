"""Phase 1: contexts without gradient, all at once or in one pass over a conversation.

A `Part` is what one forward and backward pass of phase 2 needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel
from transformers.cache_utils import Cache

from pipeline.train.batch_checks import measure_rows
from pipeline.train.model_support import ModelInterface, refuse_cache

# Recurrent layers of transformers take a segment of one token for a decoding step, which they do
# not mask (`create_recurrent_attention_mask`), so padding in it would enter the state.
_MIN_CONTEXT_WIDTH = 2

_ROW_NAMES = ("input_ids", "attention_mask", "position_ids", "labels", "weights")


class Part(NamedTuple):
    """Continuations [k, R], the cache that they follow, and whether they are a batch's last."""

    batch: Mapping[str, Any]
    cache: Cache
    is_last: bool


def freeze_contexts(
    model: torch.nn.Module, interface: ModelInterface, batch: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Cache]:
    """Return a checked ``split`` or ``grouped`` batch and the cache of its contexts.

    The context block gets at least two columns, masked ones added in front. So an empty frozen part
    needs no path of its own, and every rank runs both phases, without which FSDP would wait forever.
    """
    missing = _MIN_CONTEXT_WIDTH - batch["context_input_ids"].shape[1]
    if missing > 0:
        names = [name for name in batch if name.startswith("context_") and name != "context_index"]
        widened = {name: pad(batch[name], (missing, 0)) for name in [*names, "attention_mask"]}
        batch = {**batch, **widened}
    inputs = interface.select_inputs(
        batch["context_input_ids"], batch["context_attention_mask"], batch["context_position_ids"]
    )
    return batch, _run_frozen(model, interface, inputs, None)


def cut_parts(batch: Mapping[str, Any], cache: Cache, max_tokens: int) -> Iterator[Part]:
    """Yield the continuations of a batch on the cache of its contexts, in parts of ``max_tokens``."""
    rows, width = batch["input_ids"].shape
    index = batch.get("context_index")
    if index is None:
        index = torch.arange(rows, device=batch["input_ids"].device)
    step = max(1, max_tokens // width)
    for start in range(0, rows, step):
        part = {name: batch[name][start : start + step] for name in _ROW_NAMES}
        part["context_index"] = index[start : start + step]
        yield Part(part, cache, start + step >= rows)


def walk_contexts(
    model: torch.nn.Module, interface: ModelInterface, batch: Mapping[str, Any], max_tokens: int
) -> Iterator[Part]:
    """Yield the parts of a checked ``conversation`` batch, each on the cache as it stands there.

    Each chain's cache grows from one boundary to the next. A part holds continuations of one
    boundary, of ``max_tokens`` padded tokens or one row. The next part may be asked for when the
    backward pass of the last is over: recurrent states are written in place.
    """
    lengths = measure_rows(batch)
    chains: list[int] = batch["context_index"].tolist()
    order = sorted(
        range(len(chains)), key=lambda row: (chains[row], lengths.frozen[row], lengths.total[row])
    )
    parts = [
        (chain, frozen, part)
        for (chain, frozen), rows in groupby(order, lambda row: (chains[row], lengths.frozen[row]))
        for part in _cut_rows(list(rows), [total - frozen for total in lengths.total], max_tokens)
    ]
    cache, walked, done = None, None, 0
    for place, (chain, frozen, rows) in enumerate(parts):
        if chain != walked:
            cache, walked, done = None, chain, 0
        if frozen > done:
            segment = batch["context_input_ids"][chain, None, done:frozen]
            cache = _grow_cache(model, interface, segment, cache, done)
            done = frozen
        width = max(lengths.total[row] for row in rows) - frozen
        part = _take_rows(batch, rows, width, frozen)
        is_last = place == len(parts) - 1
        if cache is None:
            yield Part(*freeze_contexts(model, interface, _add_empty_context(part)), is_last)
        else:
            yield Part(part, cache, is_last)


def _cut_rows(rows: list[int], live: list[int], max_tokens: int) -> list[list[int]]:
    """Return ``rows``, shortest first, in parts whose rows x longest fit ``max_tokens``."""
    parts: list[list[int]] = [[]]
    for row in rows:
        if parts[-1] and (len(parts[-1]) + 1) * live[row] > max_tokens:
            parts.append([])
        parts[-1].append(row)
    return parts


def _grow_cache(
    model: torch.nn.Module,
    interface: ModelInterface,
    segment: Tensor,
    cache: Cache | None,
    done: int,
) -> Cache:
    """Return the cache of one context after a further ``segment`` [1, tokens]."""
    end = done + segment.shape[1]
    positions = torch.arange(done, end, device=segment.device)[None]
    inputs = interface.select_inputs(segment, segment.new_ones(1, end), positions)
    return _run_frozen(model, interface, inputs, cache)


def _take_rows(
    batch: Mapping[str, Any], rows: list[int], width: int, frozen: int
) -> dict[str, Tensor]:
    """Return the first ``width`` columns of rows that all follow ``frozen`` tokens of one context."""
    places = torch.tensor(rows, device=batch["input_ids"].device)
    names = ("input_ids", "labels", "attention_mask")
    part: dict[str, Tensor] = {name: batch[name][places, :width] for name in names}
    part["weights"] = batch["weights"][places]
    part["position_ids"] = frozen + torch.arange(width, device=places.device).expand(len(rows), -1)
    part["attention_mask"] = pad(part["attention_mask"], (frozen, 0), value=1)
    # One row alone reads the cache as it is, without a copy of its keys.
    return part if len(rows) == 1 else part | {"context_index": torch.zeros_like(places)}


def _add_empty_context(part: dict[str, Tensor]) -> dict[str, Tensor]:
    names = ("context_input_ids", "context_attention_mask", "context_position_ids")
    return part | {name: part["input_ids"].new_zeros(1, 0) for name in names}


@torch.no_grad()
def _run_frozen(
    model: torch.nn.Module,
    interface: ModelInterface,
    inputs: dict[str, Tensor],
    cache: Cache | None,
) -> Cache:
    """Run tokens without gradient, and no logits but one token's; return the cache after them."""
    # DDP synchronises buffers at each forward, and phase 1 has nothing to reduce.
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    grown = {} if cache is None else {interface.cache_name: cache}
    output = inner(**inputs, **grown, **interface.least_logits, use_cache=True, return_dict=True)
    if torch.is_autocast_enabled(inputs["input_ids"].device.type):
        # Before pytorch PR 165068 (late 2025), autocast kept the weights that it cast here, which
        # have no gradient, and phase 2 trained nothing through them.
        torch.clear_autocast_cache()
    # Some models of others answer in a tuple, whatever `return_dict` says.
    after = output.get(interface.cache_name) if isinstance(output, Mapping) else output
    refuse_cache(model, after)
    return cast("Cache", after)
