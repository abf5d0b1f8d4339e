"""Rotary positions whose frequencies depend on how long the input is.

transformers chooses the frequencies of ``longrope`` (Phi-3 128k) and of dynamic NTK anew in each
forward pass, by the longest row of the batch (`dynamic_rope_update`, transformers 5.24). A context
alone can so get others than the context with its continuation, and a short row others beside a long
one. vLLM chooses once, by the model's limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from pipeline.errors import UnsupportedModel
from pipeline.train.batch_checks import RowLengths, name_rows

_FIXED = "default"


class TurningRope(NamedTuple):
    """A module whose frequencies are others from ``limit`` tokens on: how, and for which layers."""

    module: Any
    kind: str
    limit: int
    layer_type: str | None


def find_turning_ropes(model: torch.nn.Module) -> list[TurningRope]:
    """Return the rotary modules of a model that depend on the length of the input."""
    return [rope for module in model.modules() for rope in _read_module(module)]


def fix_rope(model: torch.nn.Module, max_model_len: int) -> None:
    """Give every row of any length the frequencies of a row of ``max_model_len`` tokens, as vLLM does.

    ``max_model_len`` is the server's. Of the model in memory alone: call it after loading, and
    before training or evaluating. For a model whose rope does not depend on the length it does
    nothing.
    """
    ropes = find_turning_ropes(model)
    for rope in ropes:
        device = next(iter(rope.module.buffers())).device
        named = {} if rope.layer_type is None else {"layer_type": rope.layer_type}
        last = torch.tensor([[max_model_len - 1]], device=device)
        # A forward pass at the last position chooses the frequencies.
        rope.module(torch.zeros(1, 1, 1, device=device), last, **named)
    for module, layer_type in {(rope.module, rope.layer_type) for rope in ropes}:
        if layer_type is None:
            module.rope_type = _FIXED
        else:
            module.rope_type = {**module.rope_type, layer_type: _FIXED}


def refuse_turning_rows(
    ropes: list[TurningRope], lengths: RowLengths, first_pass: int, model_name: str
) -> None:
    """Raise `UnsupportedModel` where a row would get other frequencies than alone, or in one phase.

    ``first_pass`` is how many tokens phase 1 shows the model at first, before it shows any other.
    """
    for rope in ropes:
        beyond = [place for place, total in enumerate(lengths.total) if total > rope.limit]
        is_right = not beyond or (
            "dynamic" not in rope.kind
            and len(beyond) == len(lengths.total)
            and first_pass > rope.limit
        )
        if not is_right:
            raise UnsupportedModel(
                f"{model_name} has a rope ({rope.kind}) of other frequencies beyond {rope.limit} "
                f"tokens, and in this batch the phases or the rows lie on two sides of that: "
                f"{name_rows(beyond, lengths)}; call pipeline.train.rope.fix_rope(model, "
                "max_model_len) with the server's limit, or prepare the set with max_len "
                f"{rope.limit}"
            )


def _read_module(module: Any) -> Iterator[TurningRope]:
    kinds: Any = getattr(module, "rope_type", None)
    if isinstance(kinds, str):
        kinds = {None: kinds}
    if not isinstance(kinds, dict):
        return
    for layer_type, kind in kinds.items():
        if isinstance(kind, str) and (kind == "longrope" or "dynamic" in kind):
            yield TurningRope(module, kind, _read_limit(module, layer_type), layer_type)


def _read_limit(module: Any, layer_type: str | None) -> int:
    config: Any = module.config
    settings: Any = getattr(config, "rope_parameters", None) or {}
    if layer_type is not None:
        settings = settings.get(layer_type, {})
    name = "original_max_position_embeddings"
    limit = settings.get(name) or getattr(config, name, None) or config.max_position_embeddings
    return int(limit)
