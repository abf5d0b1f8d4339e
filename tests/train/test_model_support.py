"""The frozen step inside wrappers, and the models it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import T5Config, T5ForConditionalGeneration
from transformers.cache_utils import DynamicCache, StaticCache

from pipeline.errors import UnsupportedModel
from pipeline.train.model_support import read_interface, refuse_cache
from pipeline.train.step import (
    context_frozen_loss,
    count_items,
    frozen_losses,
    two_phase_error,
)
from tests.tiny_models import (
    FAMILIES,
    assert_same_gradients,
    build_model,
    collate,
    every_family,
    make_rows,
    read_gradients,
)
from tests.train.test_step import reference_loss

# One rank's whole batch has an empty frozen part: both must still run the same forwards.
RANK_SHAPES = (((1, 5), (1, 3)), ((20, 6), (7, 2), (11, 4)))


def rank_batches() -> list[dict[str, Any]]:
    return [collate(make_rows(shapes, seed=rank)) for rank, shapes in enumerate(RANK_SHAPES)]


def train_in_one_process(family: str) -> dict[str, torch.Tensor]:
    model, batches = build_model(family), rank_batches()
    num_items = sum(count_items(batch) for batch in batches)
    for batch in batches:
        context_frozen_loss(model, batch, num_items).backward()
    return read_gradients(model)


def check_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=len(RANK_SHAPES)
    )
    check_ddp_rank(rank)
    check_walking_ddp_rank(rank)
    check_fsdp_rank(rank)
    torch.distributed.destroy_process_group()


def check_ddp_rank(rank: int) -> None:
    for family in ("qwen3", "qwen3_5_text"):
        model = DistributedDataParallel(build_model(family))
        batches = rank_batches()
        num_items = sum(count_items(batch) for batch in batches)
        for _ in range(2):
            model.zero_grad()
            loss = context_frozen_loss(model, batches[rank], num_items)
            (loss * len(RANK_SHAPES)).backward()
        assert_same_gradients(read_gradients(model.module), train_in_one_process(family))


def check_walking_ddp_rank(rank: int) -> None:
    """One rank has one loss and the other four, in two steps each."""
    row = make_rows(((20, 6),))[0]
    ranks = [[row], [row | {"context_len": length} for length in (3, 9, 9, 18)]]
    batches = [collate(rows, "conversation") for rows in ranks]
    num_items = sum(count_items(batch) for batch in batches)
    whole, model = build_model("qwen3_5_text"), DistributedDataParallel(build_model("qwen3_5_text"))
    for _ in range(2):
        model.zero_grad()
        for loss in frozen_losses(model, batches[rank], num_items, max_tokens=1):
            (loss * len(ranks)).backward()
    assert model.require_backward_grad_sync
    for rows in ranks:
        context_frozen_loss(whole, collate(rows), num_items).backward()
    assert_same_gradients(read_gradients(model.module), read_gradients(whole))


def check_fsdp_rank(rank: int) -> None:
    mesh = init_device_mesh("cpu", (len(RANK_SHAPES),))
    model = build_model("llama")
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    batches = rank_batches()
    num_items = sum(count_items(batch) for batch in batches)
    (context_frozen_loss(model, batches[rank], num_items) * len(RANK_SHAPES)).backward()
    whole = {name: grad.full_tensor() for name, grad in read_gradients(model).items()}
    assert_same_gradients(whole, train_in_one_process("llama"))


def test_ddp_and_fsdp_ranks_train_like_one_process(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(check_rank, (str(tmp_path),), nprocs=len(RANK_SHAPES))


@every_family
def test_lora_gradient_equals_that_of_a_full_forward_with_the_context_cut_off(family: str) -> None:
    peft = pytest.importorskip("peft")

    def build_adapter() -> Any:
        settings = peft.LoraConfig(
            r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.0
        )
        torch.manual_seed(3)
        return peft.get_peft_model(build_model(family), settings)

    model, reference = build_adapter(), build_adapter()
    batch = collate(make_rows())
    context_frozen_loss(model, batch).backward()
    reference_loss(reference, batch).backward()
    found = read_gradients(model)
    assert found
    assert all("lora_" in name for name in found)
    assert_same_gradients(found, read_gradients(reference))


@pytest.mark.nightly
def test_a_compiled_model_trains_like_the_plain_one() -> None:
    small = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    plain, compiled = (build_model("qwen3_5_text", **small) for _ in range(2))
    batch = collate(make_rows())
    context_frozen_loss(torch.compile(compiled, backend="eager"), batch).backward()
    context_frozen_loss(plain, batch).backward()
    assert_same_gradients(read_gradients(compiled), read_gradients(plain))


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_model_compiled_with_its_backward_trains_like_the_plain_one(family: str) -> None:
    plain, compiled = build_model(family), build_model(family)
    batch = collate(make_rows())
    compiled.compile(backend="aot_eager")
    context_frozen_loss(compiled, batch).backward()
    context_frozen_loss(plain, batch).backward()
    assert_same_gradients(read_gradients(compiled), read_gradients(plain))


EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
STATES = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_d_ssm": 64,
}
DELTA = {
    name: size for name, size in FAMILIES["qwen3_5_text"].items() if name.startswith("linear_")
}
OTHER_FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": EXPERTS,
    "qwen3_next": EXPERTS | DELTA,
    "olmo_hybrid": DELTA,
    "gemma2": {},
    "gemma4_text": {},
    "gpt_oss": EXPERTS,
    "llama4_text": {"num_local_experts": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "bamba": STATES | {"attn_layer_indices": [1]},
    "falcon_h1": STATES,
    "olmo2": {},
    "phi3": {},
    "opt": {},
    "bloom": {},
}


@pytest.mark.nightly
@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_other_families_continue_their_cache_exactly(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, family, FAMILIES["llama"] | OTHER_FAMILIES[family])
    assert two_phase_error(build_model(family), collate(make_rows())) < 2e-5


def test_gradient_checkpointing_is_refused() -> None:
    model = build_model("llama")
    model.gradient_checkpointing_enable()
    with pytest.raises(
        UnsupportedModel, match=r"LlamaForCausalLM has gradient checkpointing on.*_disable"
    ):
        context_frozen_loss(model, collate(make_rows()))
    model.gradient_checkpointing_disable()
    context_frozen_loss(model, collate(make_rows()))


def test_a_model_whose_layers_forget_the_context_is_refused() -> None:
    model = build_model("llama")
    model.config.model_type = "jamba"
    with pytest.raises(
        UnsupportedModel, match=r"LlamaForCausalLM forget the context.*joined layout"
    ):
        context_frozen_loss(model, collate(make_rows()))


def test_a_paged_attention_kernel_is_refused() -> None:
    model = build_model("llama")
    model.config._attn_implementation = "paged|sdpa"
    with pytest.raises(UnsupportedModel, match=r"paged\|sdpa, which takes packed input.*sdpa"):
        context_frozen_loss(model, collate(make_rows()))


def test_data_parallel_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"DataParallel.*use DistributedDataParallel"):
        read_interface(nn.DataParallel(build_model("llama")))


def test_a_prompt_learning_adapter_is_refused() -> None:
    peft = pytest.importorskip("peft")
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = peft.get_peft_model(build_model("llama"), settings)
    with pytest.raises(UnsupportedModel, match=r"PROMPT_TUNING.*use LoRA"):
        context_frozen_loss(model, collate(make_rows()))


def build_t5() -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )


@pytest.mark.parametrize(
    "model", [nn.Linear(2, 2), build_t5()], ids=["no cache", "encoder-decoder"]
)
def test_a_model_without_a_decoder_cache_is_refused(model: nn.Module) -> None:
    with pytest.raises(
        UnsupportedModel, match=f"{type(model).__name__} takes no cache of a decoder"
    ):
        context_frozen_loss(model, collate(make_rows()))


def test_a_model_that_returns_no_cache_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"returned NoneType for its cache.*joined layout"):
        refuse_cache(nn.Linear(2, 2), None)


def test_a_cache_layer_that_writes_in_place_is_refused() -> None:
    config = build_model("llama").config
    refuse_cache(nn.Linear(2, 2), DynamicCache(config=config))
    with pytest.raises(UnsupportedModel, match="keeps its context in StaticLayer; expected"):
        refuse_cache(nn.Linear(2, 2), StaticCache(config=config, max_cache_len=8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_flash_attention_agrees_with_a_full_forward_on_ragged_rows() -> None:
    pytest.importorskip("flash_attn")
    model = build_model("llama", attn_implementation="flash_attention_2").cuda().bfloat16()
    assert two_phase_error(model, collate(make_rows(), device="cuda")) < 0.125
