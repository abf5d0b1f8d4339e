"""Tiny random models of each cache kind, ragged rows, and how to compare their gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.train.collate import ContextFrozenCollator

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen3": SIZES,
    # A window shorter than the contexts, so that the cache holds only their ends.
    "gemma3_text": SIZES
    | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "qwen3_5_text": SIZES
    | {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    },
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "mixtral": SIZES | {"num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": None},
}
every_family = pytest.mark.parametrize("family", FAMILIES)

# (context_len, continuation length): an empty frozen part, one token, and longer than the window.
RAGGED = ((1, 3), (2, 7), (9, 1), (24, 5))


def build_model(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(FAMILIES[family] | changes))
    # Default initialisation is so flat that a wrong cache would hide below the tolerance.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.train()


def make_rows(shapes: tuple[tuple[int, int], ...] = RAGGED, seed: int = 0) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [
        {
            "id": f"row-{index}",
            "input_ids": random.integers(3, VOCABULARY, context + continuation),
            "context_len": context,
            "weight": 0.5 + index,
        }
        for index, (context, continuation) in enumerate(shapes)
    ]


def collate(rows: list[dict[str, Any]], layout: str = "split", **settings: Any) -> dict[str, Any]:
    return dict(ContextFrozenCollator(layout, **settings)(rows))  # type: ignore[arg-type]


def read_gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_same_gradients(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name],
            gradient,
            rtol=1e-4,
            atol=1e-5,
            msg=lambda text, name=name: f"{name}: {text}",
        )
