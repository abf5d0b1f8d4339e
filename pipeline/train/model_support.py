"""What the frozen step asks of a model: its argument names, and whether it can do both phases."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from pipeline.errors import UnsupportedModel
from pipeline.train.readonly_cache import READABLE_LAYERS

# transformers 5.17 to 5.23 renamed `past_key_values` to `cache`; the old name goes in 5.40.
_CACHE_NAMES = ("cache", "past_key_values")
_WRAPPER_ATTRIBUTES = ("module", "_orig_mod")
# Their first-generation Mamba layers start every segment of several tokens from an empty state
# (transformers 5.24, `recurrent_state is not None and seq_len == 1`), which raises no error.
_FORGETFUL_TYPES = ("falcon_mamba", "jamba", "mamba", "zamba")


@dataclass(frozen=True, slots=True)
class ModelInterface:
    """Names of a model's forward arguments; ``cache_name`` is also the output's attribute."""

    cache_name: str
    takes_position_ids: bool
    takes_logits_to_keep: bool

    @property
    def least_logits(self) -> dict[str, int]:
        """Arguments that keep the head from running on every token.

        With Qwen3.5's vocabulary the logits of an 8k context take 4 GB in bfloat16.
        """
        return {"logits_to_keep": 1} if self.takes_logits_to_keep else {}

    def select_inputs(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor
    ) -> dict[str, Tensor]:
        """Return the arguments of a forward pass that the model knows."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return inputs | ({"position_ids": position_ids} if self.takes_position_ids else {})


def read_interface(model: torch.nn.Module) -> ModelInterface:
    """Return the interface of the model inside its wrappers, or raise `UnsupportedModel`.

    Refused: gradient checkpointing (it drops the cache inside layers), `torch.nn.DataParallel`
    (it cannot split a cache), prompt-learning adapters (their virtual tokens would enter twice),
    paged attention kernels (they need packed input), a balancing loss of experts (the model computes
    it of one whole forward pass), positions counted from the padding id on, models without a cache,
    and those that forget it.
    """
    if isinstance(model, torch.nn.DataParallel):
        raise UnsupportedModel(
            "the model is wrapped in DataParallel, which cannot split a cache; "
            "use DistributedDataParallel (torchrun), or one device"
        )
    inner = unwrap(model)
    if any(getattr(module, "gradient_checkpointing", False) for module in inner.modules()):
        raise UnsupportedModel(
            f"{type(inner).__name__} has gradient checkpointing on, which drops the context's "
            "cache inside the layers; call model.gradient_checkpointing_disable(): only the "
            "continuation's activations are kept here"
        )
    config = getattr(inner, "config", None)
    if getattr(config, "model_type", None) in _FORGETFUL_TYPES:
        raise UnsupportedModel(
            f"the layers of {type(inner).__name__} forget the context at the start of a segment; "
            "train with prompt masking instead (joined layout)"
        )
    if any(_counts_from_padding(module) for module in inner.modules()):
        raise UnsupportedModel(
            f"{type(inner).__name__} counts positions from its padding id on, as RoBERTa does, and "
            "takes those of a batch for others; train with prompt masking instead (joined layout, "
            "without its position_ids)"
        )
    if any(getattr(each, "output_router_logits", False) for each in _read_configs(inner)):
        raise UnsupportedModel(
            f"{type(inner).__name__} is to add a balancing loss of its experts "
            "(output_router_logits), which two phases do not give; set "
            "model.config.output_router_logits = False: routing stays as it is"
        )
    kernel = str(getattr(config, "_attn_implementation", ""))
    if kernel.startswith("paged"):
        raise UnsupportedModel(
            f"the attention implementation is {kernel}, which takes packed input; "
            'load the model with attn_implementation="sdpa" or "flash_attention_2"'
        )
    return _read_signature(type(inner))


def refuse_cache(model: torch.nn.Module, cache: object) -> None:
    """Raise `UnsupportedModel` unless ``cache`` can be read without being changed."""
    if not isinstance(cache, Cache):
        raise UnsupportedModel(
            f"{type(unwrap(model)).__name__} returned {type(cache).__name__} for its cache; "
            "expected a transformers Cache: train with prompt masking instead (joined layout)"
        )
    layers: list[Any] = cache.layers
    foreign = {type(layer).__name__ for layer in layers} - READABLE_LAYERS
    if foreign:
        raise UnsupportedModel(
            f"{type(unwrap(model)).__name__} keeps its context in {', '.join(sorted(foreign))}; "
            f"expected {', '.join(sorted(READABLE_LAYERS))}: train with prompt masking instead "
            "(joined layout)"
        )


def read_position_limit(inner: torch.nn.Module) -> int | None:
    """Return the most tokens that a model has positions for, or None where it does not say.

    A factor of its rope lifts the limit, as vLLM counts it (`_get_and_verify_max_len`).
    """
    *_, config = _read_configs(inner) or [None]
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    settings: Any = getattr(config, "rope_parameters", None) or {}
    for each in (settings, *settings.values()):
        if isinstance(each, dict):
            original = each.get("original_max_position_embeddings") or limit
            limit = max(limit, int(original * (each.get("factor") or 1)))
    return limit


def _read_configs(inner: torch.nn.Module) -> list[Any]:
    """Return the model's config, and that of its text part where it has one apart."""
    config: Any = getattr(inner, "config", None)
    if config is None:
        return []
    return [config, config.get_text_config()] if hasattr(config, "get_text_config") else [config]


def _counts_from_padding(module: torch.nn.Module) -> bool:
    positions = getattr(module, "position_embeddings", None)
    return isinstance(positions, torch.nn.Embedding) and positions.padding_idx is not None


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """Return the transformers model inside DDP, FSDP, torch.compile and PEFT wrappers."""
    for name in _WRAPPER_ATTRIBUTES:
        inner = getattr(model, name, None)
        if isinstance(inner, torch.nn.Module):
            return unwrap(inner)
    if hasattr(model, "get_base_model"):
        adapter: Any = model
        if adapter.active_peft_config.is_prompt_learning:
            raise UnsupportedModel(
                f"the adapter is {adapter.active_peft_config.peft_type}, whose virtual tokens "
                "would enter both phases; use LoRA or another adapter of the weights"
            )
        return adapter.get_base_model()
    return model


@lru_cache
def _read_signature(kind: type[torch.nn.Module]) -> ModelInterface:
    parameters = inspect.signature(kind.forward).parameters
    cache_name = next((name for name in _CACHE_NAMES if name in parameters), None)
    if cache_name is None or "encoder_outputs" in parameters:
        raise UnsupportedModel(
            f"{kind.__name__} takes no cache of a decoder; expected a transformers causal LM "
            f"whose forward has one of {', '.join(_CACHE_NAMES)}"
        )
    return ModelInterface(cache_name, "position_ids" in parameters, "logits_to_keep" in parameters)
