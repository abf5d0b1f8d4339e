"""What the frozen step does with a model, before any training: each fact with its evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pipeline.answer.traits import Trait
from pipeline.errors import BadRow, UnsupportedModel, UsageError, excerpt_of
from pipeline.train.collate import ContextFrozenCollator
from pipeline.train.model_support import (
    read_interface,
    read_position_limit,
    refuse_cache,
    unwrap,
)
from pipeline.train.rope import find_turning_ropes
from pipeline.train.step import context_frozen_loss, two_phase_error

# In float32 the phases differ by 1e-4 through 30 layers; a cache that is misread gives 0.1 and more.
_TOLERANCE: Final = 1e-3
# (context_len, continuation) of rows that are made up, in tokens: an empty frozen part among them.
_MADE_UP: Final = ((1, 3), (2, 7), (9, 1), (200, 40))
_MOST_MEASURED: Final = 96
_FROZEN: Final = 4
_GIB: Final = 2**30
_KERNELS: Final = {
    "sdpa": "Scores of attention are not kept, or made again in backward.",
    "eager": "Keeps a score for every continuation token x every token before it, in each head and "
    'layer: load the model with attn_implementation="sdpa" for long contexts.',
}


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """The facts about one model, in the order in which they are read.

    ``is_right``: both phases gave the logits of each row alone, and nothing was refused.
    """

    model: str
    traits: tuple[Trait, ...]
    is_right: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON can hold them."""
        traits = {trait.name: asdict(trait) for trait in self.traits}
        return {"model": self.model, "ok": self.is_right, "traits": traits}


class _Sizes(NamedTuple):
    """Bytes of a context's cache and of what backward needs: of each row, and of each token."""

    cache_row: float
    cache_token: float
    saved_token: float


def load_model(path: str) -> torch.nn.Module:
    """Return the causal LM of a folder or Hub name in float32, or raise `UsageError`."""
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"model {path}: transformers cannot load it: {excerpt_of(error)}; expected the folder or Hub "
            "name of a causal LM"
        ) from error


def check_model(
    model: torch.nn.Module,
    rows: Any = None,
    *,
    name: str = "model",
    context_tokens: int = 32_768,
    continuation_tokens: int = 8_192,
) -> ModelCheck:
    """Return what the frozen step does with ``model``, a transformers causal LM in float32.

    ``rows`` is a split of a saved set (``datasets.Dataset``), of which the longest row, the
    shortest and the four most unlike run in two phases and alone; None: made-up ids. The budgets
    are those of `pipeline.train.sampling.LengthBatchSampler`, for which memory is told. Nothing is
    trained, and no gradient is left.

    Example::

        checked = check_model(AutoModelForCausalLM.from_pretrained(path), load("out/set")["train"])
        assert checked.is_right, checked.traits
    """
    inner = unwrap(model)
    traits = [*_describe_model(inner)]
    limit = min((rope.limit for rope in find_turning_ropes(inner)), default=None)
    limit = limit or read_position_limit(inner)
    batches = _pick_batches(rows, limit, _count_ids(inner))
    is_right = True
    for kind, batch in batches.items():
        trait = _compare_phases(model, kind, batch)
        is_right &= trait.value not in ("refused", "differs")
        traits.append(trait)
    if is_right:
        sizes = _measure_sizes(model, limit, _count_ids(inner))
        traits.append(_describe_memory(sizes, context_tokens, continuation_tokens))
    return ModelCheck(name, tuple(traits), is_right)


def _describe_model(inner: torch.nn.Module) -> Iterator[Trait]:
    weights = sum(parameter.numel() for parameter in inner.parameters())
    config: Any = getattr(inner, "config", None)
    yield Trait(
        "class",
        type(inner).__name__,
        f"{weights:,} weights, {config.get_text_config().num_hidden_layers} layers",
        "transformers builds this class; the step runs its own forward, twice.",
    )
    kernel = str(getattr(config, "_attn_implementation", "unknown"))
    meaning = _KERNELS.get(kernel, "Compare it with sdpa once: kernels differ in what they mask.")
    yield Trait("attention", kernel, "", meaning)
    limit = read_position_limit(inner)
    yield Trait(
        "positions",
        "unknown" if limit is None else str(limit),
        "config.json",
        "Longer rows are refused: prepare the set with max_len of at most this.",
    )
    ropes = find_turning_ropes(inner)
    if not ropes:
        yield Trait("rope", "fixed", "", "A token's position means the same in rows of any length.")
    for kind, length in sorted({(rope.kind, rope.limit) for rope in ropes}):
        yield Trait(
            "rope",
            f"turns at {length}",
            kind,
            "Other frequencies beyond that many tokens: call pipeline.train.rope.fix_rope(model, "
            "max_model_len) with the server's limit after loading.",
        )


def _compare_phases(model: torch.nn.Module, kind: str, batch: Mapping[str, Any]) -> Trait:
    totals: list[int] = batch["attention_mask"].sum(dim=1).tolist()
    seen = f"{len(totals)} row(s) of {', '.join(f'{total:,}' for total in totals)} tokens"
    try:
        error = two_phase_error(model, batch)
    except (UnsupportedModel, BadRow) as refusal:
        return Trait(f"phases_{kind}", "refused", seen, str(refusal))
    if error <= _TOLERANCE:
        meaning = "Largest difference of a logit in two phases from that of the row alone: none but rounding."
        return Trait(f"phases_{kind}", f"{error:.0e}", seen, meaning)
    return Trait(
        f"phases_{kind}",
        "differs",
        f"{seen}; a logit differs by {error:.2g}",
        "The two phases are not the model's own forward: train with prompt masking instead (joined "
        "layout).",
    )


def _describe_memory(sizes: _Sizes, context_tokens: int, continuation_tokens: int) -> Trait:
    # Measured in float32, told for weights in two bytes.
    cache = (sizes.cache_row + sizes.cache_token * context_tokens) / 2
    saved = sizes.saved_token * continuation_tokens / 2
    return Trait(
        "memory",
        f"{(cache + saved) / _GIB:.1f} GiB",
        f"cache {cache / _GIB:.2g} GiB of {context_tokens:,} context tokens, activations "
        f"{saved / _GIB:.2g} GiB of {continuation_tokens:,} continuation tokens",
        "Of one step in bfloat16, beside weights, gradients and the optimizer's states; measured on "
        "short rows, so windows and recurrent layers take less.",
    )


def _pick_batches(
    rows: Any, limit: int | None, vocabulary: int | None
) -> dict[str, Mapping[str, Any]]:
    """Return split batches of the longest row, the shortest one, and the four most unlike."""
    collate = ContextFrozenCollator("split")
    if rows is None:
        shapes = [shape for shape in _MADE_UP if sum(shape) <= (limit or sum(shape))]
        return {"made_up": collate([_make_row(*shape, vocabulary) for shape in shapes])}
    if not len(rows):
        raise UsageError("the set has no rows in its split train; nothing can be run")
    table = rows.with_format("arrow")
    total = np.asarray(rows.with_format("numpy")["total_len"][:])
    context = np.asarray(rows.with_format("numpy")["context_len"][:])
    live = total - context
    unlike = [context.argmax(), context.argmin(), live.argmax(), live.argmin()]
    picked = {"longest": [total.argmax()], "shortest": [total.argmin()], "ragged": unlike}
    return {
        kind: collate(table[list(dict.fromkeys(map(int, places)))])
        for kind, places in picked.items()
    }


def _make_row(context: int, continuation: int, vocabulary: int | None) -> dict[str, Any]:
    ids = np.random.default_rng(context).integers(0, vocabulary or 2, context + continuation)
    return {"input_ids": ids, "context_len": context}


def _count_ids(inner: Any) -> int | None:
    return getattr(inner.get_input_embeddings(), "num_embeddings", None)


def _measure_sizes(model: torch.nn.Module, limit: int | None, vocabulary: int | None) -> _Sizes:
    """Return sizes by the difference of two lengths, so that what a row costs is apart."""
    long = min(_MOST_MEASURED, (limit or 2 * _MOST_MEASURED) // 2 - _FROZEN)
    short = long // 2
    interface = read_interface(model)
    caches: list[int] = []
    for tokens in (short, long):
        ids = torch.tensor(np.array([_make_row(tokens, 0, vocabulary)["input_ids"]]))
        with torch.no_grad():
            output = model(input_ids=ids, use_cache=True, return_dict=True)
        cache = output[interface.cache_name]
        refuse_cache(model, cache)
        caches.append(sum(map(_count_bytes, cache.layers)))
    cache_token = (caches[1] - caches[0]) / (long - short)
    saved = [
        _measure_saved(model, _make_row(_FROZEN, tokens, vocabulary)) for tokens in (short, long)
    ]
    return _Sizes(
        caches[0] - cache_token * short, cache_token, (saved[1] - saved[0]) / (long - short)
    )


def _count_bytes(value: Any) -> int:
    """Return the bytes of the tensors in a layer of a cache."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    inside: Any = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return sum(map(_count_bytes, inside.values()))


def _measure_saved(model: torch.nn.Module, row: Mapping[str, Any]) -> int:
    """Return the bytes that backward of one row needs, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
            # While it lives no other block gets its address.
            kept.append(tensor)
        return tensor

    batch = ContextFrozenCollator("split")([row])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = context_frozen_loss(model, batch)
    del loss
    return sum(saved.values())
