"""The frozen step against references that never touch a cache."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import UsageError
from pipeline.train.readonly_cache import ReadOnlyCache
from pipeline.train.step import (
    context_frozen_loss,
    continuation_log_probs,
    continuation_logits,
    count_items,
    two_phase_error,
)
from tests.tiny_models import (
    VOCABULARY,
    assert_same_gradients,
    build_model,
    collate,
    every_family,
    make_rows,
    read_gradients,
)

# --- the reference: one full forward whose context keys, values and states are cut off by hooks ---


def cut(tensor: Tensor, width: int, length: int) -> Tensor:
    """Detach the first ``width`` of ``length`` tokens of a tensor, on whichever axis they lie."""
    axis = 1 if tensor.shape[1] == length else 2
    assert tensor.shape[axis] == length
    context, rest = tensor.narrow(axis, 0, width), tensor.narrow(axis, width, length - width)
    return torch.cat([context.detach(), rest], dim=axis)


@contextmanager
def context_cut_off(model: nn.Module, width: int, length: int) -> Iterator[None]:
    """Detach keys, values and recurrent inputs of the first ``width`` tokens, in every layer."""

    def cut_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return cut(output, width, length)

    def cut_fused_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        query, key_value = output.split([output.shape[-1] // 3, 2 * output.shape[-1] // 3], dim=-1)
        return torch.cat([query, cut(key_value, width, length)], dim=-1)

    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    # Where keys are normalised, their last own parameter is the norm's.
    last_of_key = "k_norm" if "k_norm" in names else "k_proj"
    hooks = {
        last_of_key: cut_output,
        "v_proj": cut_output,
        "in_proj_qkv": cut_output,
        "c_attn": cut_fused_output,
    }
    handles = [
        module.register_forward_hook(hooks[name.rsplit(".", 1)[-1]])
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in hooks
    ]
    qwen = importlib.import_module("transformers.models.qwen3_5.modeling_qwen3_5")
    scan: Callable[..., Any] = qwen.torch_chunk_gated_delta_rule

    def cut_scan(*tokens: Tensor, **settings: Any) -> Any:
        gates = {name: cut(settings.pop(name), width, length) for name in ("g", "beta")}
        return scan(*(cut(token, width, length) for token in tokens), **gates, **settings)

    qwen.torch_chunk_gated_delta_rule = cut_scan
    try:
        yield
    finally:
        qwen.torch_chunk_gated_delta_rule = scan
        for handle in handles:
            handle.remove()


def reference_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The loss of one forward pass over the whole row, with no cache anywhere."""
    ids = torch.cat([batch["context_input_ids"], batch["input_ids"]], dim=1)
    positions = torch.cat([batch["context_position_ids"], batch["position_ids"]], dim=1)
    width = batch["context_input_ids"].shape[1]
    with context_cut_off(model, width, ids.shape[1]):
        logits = model(
            input_ids=ids,
            attention_mask=batch["attention_mask"],
            position_ids=positions,
            use_cache=False,
        ).logits[:, width:]
    total, items = logits.new_zeros(()), 0.0
    for row, labels in enumerate(batch["labels"]):
        for column in range(1, len(labels)):
            if labels[column] != -100:
                weight = batch["weights"][row]
                total = total - weight * logits[row, column - 1].log_softmax(-1)[labels[column]]
                items += float(weight)
    return total / items


# --- the tests ---


@every_family
def test_logits_of_a_ragged_batch_equal_those_of_each_row_alone(family: str) -> None:
    model = build_model(family).eval()
    rows = make_rows()
    with torch.no_grad():
        logits = continuation_logits(model, collate(rows))
        for row, found in zip(rows, logits, strict=True):
            alone = model(input_ids=torch.tensor(row["input_ids"])[None], use_cache=False).logits[0]
            expected = alone[row["context_len"] - 1 :]
            torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-5, atol=1e-5)


@every_family
def test_gradient_equals_that_of_a_full_forward_with_the_context_cut_off(family: str) -> None:
    model = build_model(family)
    reference = copy.deepcopy(model)
    batch = collate(make_rows())
    loss = context_frozen_loss(model, batch)
    loss.backward()
    expected = reference_loss(reference, batch)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(read_gradients(model), read_gradients(reference))


def test_only_what_lies_behind_context_keys_differs_from_prompt_masked_training() -> None:
    frozen, masked = build_model("llama"), build_model("llama")
    rows = [row | {"weight": 1.0} for row in make_rows(((30, 20), (12, 25)))]
    context_frozen_loss(frozen, collate(rows)).backward()
    masked(**collate(rows, "joined"), use_cache=False).loss.backward()
    found, expected = read_gradients(frozen), read_gradients(masked)
    last = "model.layers.3."
    same = [
        name
        for name in expected
        if name in ("lm_head.weight", "model.norm.weight")
        or (name.startswith(last) and any(part in name for part in ("q_proj", "o_proj", "mlp")))
    ]
    assert len(same) == 7
    assert_same_gradients({n: found[n] for n in same}, {n: expected[n] for n in same})
    for other in (f"{last}self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"):
        assert found[other].norm() < 0.9 * expected[other].norm()


@every_family
def test_every_parameter_gets_a_gradient(family: str) -> None:
    model = build_model(family)
    context_frozen_loss(model, collate(make_rows(((30, 20), (12, 25))))).backward()
    untrained = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert untrained == []


@every_family
def test_grouped_continuations_train_like_separate_calls(family: str) -> None:
    contexts = [
        row["input_ids"][: row["context_len"]] for row in make_rows(((13, 1), (1, 1), (6, 1)))
    ]
    random = np.random.default_rng(5)
    rows = [
        {
            "input_ids": np.concatenate([contexts[index], random.integers(3, VOCABULARY, length)]),
            "context_len": len(contexts[index]),
            "weight": 1.0 + length,
        }
        for index, length in ((0, 4), (2, 6), (0, 1), (1, 3), (0, 2))
    ]
    batch = collate(rows, "grouped")
    assert len(batch["context_input_ids"]) == 3
    model, separate = build_model(family), build_model(family)
    context_frozen_loss(model, batch).backward()
    for row in rows:
        context_frozen_loss(separate, collate([row]), num_items=count_items(batch)).backward()
    assert_same_gradients(read_gradients(model), read_gradients(separate))


@every_family
def test_context_cache_is_the_same_after_backward(family: str) -> None:
    model = build_model(family)
    batch = collate(make_rows(((9, 4), (12, 6))))
    name = (
        "cache"
        if "cache" in model(input_ids=batch["input_ids"], use_cache=True)
        else "past_key_values"
    )
    with torch.no_grad():
        cache = model(
            input_ids=batch["context_input_ids"],
            attention_mask=batch["context_attention_mask"],
            position_ids=batch["context_position_ids"],
            use_cache=True,
        )[name]
    before = copy.deepcopy([vars(layer) for layer in cache.layers])
    losses = []
    for _ in range(2):
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            use_cache=True,
            **{name: ReadOnlyCache(cache)},
        ).logits
        losses.append(logits.square().mean())
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    for layer, state in zip(cache.layers, before, strict=True):
        assert vars(layer).keys() == state.keys()
        for key, value in state.items():
            now = vars(layer)[key]
            same = torch.equal(now, value) if isinstance(value, Tensor) else str(now) == str(value)
            assert same, key


@every_family
def test_padding_to_a_multiple_changes_nothing(family: str) -> None:
    model = build_model(family).eval()
    rows = make_rows()
    tight, wide = collate(rows), collate(rows, pad_to_multiple_of=16, pad_token_id=7)
    assert wide["context_input_ids"].shape[1] % 16 == wide["input_ids"].shape[1] % 16 == 0
    torch.testing.assert_close(
        context_frozen_loss(model, wide), context_frozen_loss(model, tight), rtol=1e-5, atol=1e-5
    )


@every_family
@pytest.mark.parametrize("context_len", [1, 2, 3])
def test_shortest_contexts_train_like_a_plain_forward(family: str, context_len: int) -> None:
    model, plain = build_model(family), build_model(family)
    rows = make_rows(((context_len, 5), (1, 4)))
    batch = collate(rows)
    context_frozen_loss(model, batch).backward()
    reference_loss(plain, batch).backward()
    assert_same_gradients(read_gradients(model), read_gradients(plain))


def test_eager_attention_gives_the_gradient_of_sdpa() -> None:
    eager = build_model("gemma3_text", attn_implementation="eager")
    sdpa = build_model("gemma3_text", attn_implementation="sdpa")
    batch = collate(make_rows())
    for model in (eager, sdpa):
        context_frozen_loss(model, batch).backward()
    assert_same_gradients(read_gradients(eager), read_gradients(sdpa))


def test_micro_batches_with_the_steps_item_count_train_like_one_batch() -> None:
    rows = make_rows()
    whole, parts = build_model("qwen3"), build_model("qwen3")
    context_frozen_loss(whole, collate(rows)).backward()
    micro_batches = [collate(rows[:1]), collate(rows[1:])]
    num_items = sum(count_items(batch) for batch in micro_batches)
    for batch in micro_batches:
        context_frozen_loss(parts, batch, num_items).backward()
    assert_same_gradients(read_gradients(parts), read_gradients(whole))


def test_a_batch_of_weightless_rows_trains_nothing() -> None:
    model = build_model("llama")
    loss = context_frozen_loss(model, collate([row | {"weight": 0.0} for row in make_rows()]))
    loss.backward()
    assert loss.item() == 0.0
    assert not any(gradient.any() for gradient in read_gradients(model).values())


def test_untrained_tokens_of_a_continuation_are_left_out_of_loss_and_count() -> None:
    model = build_model("llama").eval()
    row = make_rows(((6, 4),))[0]
    ids = row["input_ids"]
    labels = np.full(len(ids), -100)
    labels[8:] = ids[8:]
    batch = collate([row | {"labels": labels}])
    assert count_items(batch) == 2 * row["weight"]
    logits = model(input_ids=torch.tensor(ids)[None]).logits[0, 7:9]
    expected = nn.functional.cross_entropy(logits, torch.tensor(ids[8:]))
    torch.testing.assert_close(context_frozen_loss(model, batch), expected)


# Two units in the last place of a logit of about 2.
BFLOAT16_TOLERANCE = 1 / 32


@every_family
def test_two_phases_agree_in_bfloat16(family: str) -> None:
    model = build_model(family).to(torch.bfloat16)
    batch = collate(make_rows())
    assert two_phase_error(model, batch) < BFLOAT16_TOLERANCE
    context_frozen_loss(model, batch).backward()
    assert all(gradient.isfinite().all() for gradient in read_gradients(model).values())


@every_family
def test_autocast_weights_of_the_frozen_phase_do_not_cut_the_gradient(family: str) -> None:
    model, exact = build_model(family), build_model(family)
    batch = collate(make_rows(((30, 20), (12, 25))))
    with torch.autocast("cpu", torch.bfloat16):
        context_frozen_loss(model, batch).backward()
    context_frozen_loss(exact, batch).backward()
    found, expected = read_gradients(model), read_gradients(exact)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        likeness = nn.functional.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0)
        assert likeness > 0.9, name


def test_two_phase_error_shows_a_model_that_does_not_continue_its_cache() -> None:
    model = build_model("llama")
    batch = collate(make_rows(), "grouped")
    assert two_phase_error(model, batch) < 1e-5
    assert model.training

    def count_places_anew(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output + 0.1 * torch.arange(output.shape[1])[:, None]

    model.get_input_embeddings().register_forward_hook(count_places_anew)
    assert two_phase_error(model, batch) > 0.01


def test_a_joined_batch_is_refused_with_the_layout_to_use() -> None:
    with pytest.raises(UsageError, match=r'position_ids; expected the split.*layout="split"'):
        context_frozen_loss(build_model("llama"), collate(make_rows(), "joined"))


@pytest.mark.parametrize("num_items", [0, -1.0, float("nan")])
def test_an_item_count_that_cannot_divide_is_refused(num_items: float) -> None:
    with pytest.raises(UsageError, match=f"num_items is {num_items}; expected the positive"):
        context_frozen_loss(build_model("llama"), collate(make_rows()), num_items)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@every_family
def test_gradients_on_cuda_equal_those_on_the_cpu(family: str) -> None:
    card, host = build_model(family).cuda(), build_model(family)
    context_frozen_loss(card, collate(make_rows(), device="cuda")).backward()
    context_frozen_loss(host, collate(make_rows())).backward()
    on_host = {name: gradient.cpu() for name, gradient in read_gradients(card).items()}
    for name, expected in read_gradients(host).items():
        torch.testing.assert_close(on_host[name], expected, rtol=1e-3, atol=1e-4)


@every_family
def test_log_probs_of_continuations_are_those_of_each_row_alone(family: str) -> None:
    model, rows = build_model(family).eval(), make_rows()
    found = continuation_log_probs(model, collate(rows))
    for row, score in zip(rows, found, strict=True):
        ids = torch.tensor(row["input_ids"])
        alone = model(input_ids=ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        each = alone.gather(1, ids[1:, None])[row["context_len"] - 1 :]
        torch.testing.assert_close(score, each.sum(), rtol=1e-4, atol=1e-4)


def test_a_preference_loss_of_a_pair_runs_its_context_once_and_has_the_gradient_of_two_rows() -> (
    None
):
    chosen, rejected = make_rows(((9, 4), (9, 6)))
    rejected["input_ids"][:9] = chosen["input_ids"][:9]
    signs, gradients = torch.tensor([1.0, -1.0]), []
    for layout in ("grouped", "split"):
        model = build_model("llama")
        batch = collate([chosen, rejected], layout)
        assert len(batch["context_input_ids"]) == (1 if layout == "grouped" else 2)
        torch.nn.functional.logsigmoid(continuation_log_probs(model, batch) @ signs).backward()
        gradients.append(read_gradients(model))
    assert_same_gradients(*gradients)
