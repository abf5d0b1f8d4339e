"""One pass over a conversation, against each of its rows by itself."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BadRow, UnsupportedModel, UsageError
from pipeline.rows.chains import find_chains
from pipeline.train.step import context_frozen_loss, count_items, frozen_losses
from tests.tiny_models import (
    FAMILIES,
    VOCABULARY,
    assert_same_gradients,
    build_model,
    collate,
    every_family,
    read_gradients,
)
from tests.train.test_model_support import OTHER_FAMILIES

TALK = np.random.default_rng(7).integers(3, VOCABULARY, 40)
ASIDE = np.random.default_rng(8).integers(3, VOCABULARY, 40)


def make_row(context: Any, continuation: int) -> dict[str, Any]:
    answer = np.random.default_rng([len(context), continuation]).integers(
        3, VOCABULARY, continuation
    )
    return {
        "input_ids": np.concatenate([context, answer]),
        "context_len": len(context),
        "weight": 0.5 + continuation,
    }


def make_talk() -> list[dict[str, Any]]:
    """Rows in no order: segments of no, one and many tokens, equal contexts, and one apart."""
    contexts = [TALK[:length] for length in (26, 1, 2, 25, 9, 38, 9, 9)] + [
        np.concatenate([TALK[:5], ASIDE[:12]])
    ]
    lengths = (4, 3, 1, 2, 7, 5, 1, 3, 6)
    return [make_row(context, length) for context, length in zip(contexts, lengths, strict=True)]


def walk(model: Any, batch: Any, **settings: Any) -> float:
    total = 0.0
    for loss in frozen_losses(model, batch, **settings):
        loss.backward()
        total += loss.item()
    return total


def train_alone(model: Any, rows: list[dict[str, Any]]) -> float:
    """Train each row by itself in the split layout, whose tests have references without a cache."""
    items, total = sum(count_items(collate([row])) for row in rows), 0.0
    for row in rows:
        loss = context_frozen_loss(model, collate([row]), items)
        loss.backward()
        total += loss.item()
    return total


@every_family
@pytest.mark.parametrize("max_tokens", [1, 16])
def test_a_pass_over_a_conversation_trains_like_its_rows_alone(
    family: str, max_tokens: int
) -> None:
    model, alone = build_model(family), build_model(family)
    rows = make_talk()
    batch = collate(rows, "conversation", pad_to_multiple_of=8)
    assert len(batch["context_input_ids"]) == 2
    found = walk(model, batch, max_tokens=max_tokens)
    assert found == pytest.approx(train_alone(alone, rows), rel=1e-5)
    assert_same_gradients(read_gradients(model), read_gradients(alone))


def test_in_float64_a_pass_differs_from_its_rows_by_rounding_alone() -> None:
    model, alone = build_model("llama").double(), build_model("llama").double()
    rows = make_talk()
    walk(model, collate(rows, "conversation"))
    train_alone(alone, rows)
    expected = read_gradients(alone)
    for name, gradient in read_gradients(model).items():
        # The loss itself is summed in float32.
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.nightly
@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_other_families_walk_a_conversation_exactly(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, family, FAMILIES["llama"] | OTHER_FAMILIES[family])
    # Without dropout, which OPT has by default.
    model, alone = (build_model(family).eval() for _ in range(2))
    rows = make_talk()
    found = walk(model, collate(rows, "conversation"))
    assert found == pytest.approx(train_alone(alone, rows), rel=1e-5)
    for name, parameter in alone.named_parameters():
        gradient = model.get_parameter(name).grad
        error = (gradient - parameter.grad).norm() / parameter.grad.norm().clamp(min=1e-6)
        assert error < 1e-4, name


def test_a_pass_under_autocast_trains_like_the_split_layout_under_it() -> None:
    rows = make_talk()
    model, alone = build_model("qwen3_5_text"), build_model("qwen3_5_text")
    with torch.autocast("cpu", torch.bfloat16):
        walk(model, collate(rows, "conversation"))
        train_alone(alone, rows)
    expected = read_gradients(alone)
    found = read_gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        likeness = torch.nn.functional.cosine_similarity(
            gradient.flatten(), expected[name].flatten(), dim=0
        )
        assert likeness > 0.95, name


def test_adapters_train_in_a_pass_like_on_rows_alone() -> None:
    peft = pytest.importorskip("peft")

    def build_adapter() -> Any:
        settings = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        torch.manual_seed(3)
        return peft.get_peft_model(build_model("gemma3_text"), settings)

    model, alone = build_adapter(), build_adapter()
    rows = make_talk()
    walk(model, collate(rows, "conversation"))
    train_alone(alone, rows)
    assert_same_gradients(read_gradients(model), read_gradients(alone))


def test_each_context_token_is_run_once() -> None:
    model, seen = build_model("llama"), []
    model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append((torch.is_grad_enabled(), inputs[0].numel()))
    )
    batch = collate(make_talk(), "conversation")
    walk(model, batch)
    # Two masked columns stand for the empty frozen part.
    frozen = sum(tokens for with_gradient, tokens in seen if not with_gradient)
    assert frozen == 2 + 37 + 16
    live = sum(tokens for with_gradient, tokens in seen if with_gradient)
    assert live < batch["input_ids"].numel()


def test_without_gradients_the_losses_of_a_pass_are_the_held_out_loss() -> None:
    model, rows = build_model("qwen3_5_text").eval(), make_talk()
    with torch.no_grad():
        found = sum(frozen_losses(model, collate(rows, "conversation")))
        expected = context_frozen_loss(model, collate(rows))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_continuations_of_one_context_run_within_the_budget() -> None:
    rows = [make_row(TALK[:30], length) for length in (3, 3, 3, 3, 8)]
    sizes: list[int] = []
    model = build_model("llama")
    model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: sizes.append(inputs[0].numel())
    )
    walk(model, collate(rows, "conversation"), max_tokens=8)
    assert sizes == [29, 8, 8, 9]


rows_of_few_ids = st.lists(st.lists(st.integers(3, 4), max_size=6), min_size=1, max_size=12)


@given(pieces=rows_of_few_ids)
def test_each_row_has_one_place_in_one_chain_and_its_pass_shows_its_own_context(
    pieces: list[list[int]],
) -> None:
    rows = [
        {"input_ids": np.array([*piece, 9, 5]), "context_len": len(piece) + 1} for piece in pieces
    ]
    batch = collate(rows, "conversation")
    for piece, chain, branch in zip(
        pieces, batch["context_index"], batch["branch_at"], strict=True
    ):
        assert branch == len(piece)
        assert batch["context_input_ids"][chain, :branch].tolist() == piece
    chains = find_chains([np.array(piece, dtype=int) for piece in pieces])
    assert sorted(place for chain in chains for place in chain) == list(range(len(pieces)))
    assert len(chains) == len(batch["context_input_ids"])
    for chain in chains:
        for shorter, longer in pairwise(chain):
            assert pieces[longer][: len(pieces[shorter])] == pieces[shorter]


@given(pieces=rows_of_few_ids)
def test_no_row_could_join_the_end_of_a_chain_that_a_later_one_left_open(
    pieces: list[list[int]],
) -> None:
    chains = find_chains([np.array(piece, dtype=int) for piece in pieces])
    for chain in chains:
        for other in chains:
            end, start = pieces[chain[-1]], pieces[other[0]]
            assert chain is other or start[: len(end)] != end


def test_a_conversation_batch_needs_the_losses_one_by_one() -> None:
    with pytest.raises(UsageError, match=r"conversation layout, whose losses.*use frozen_losses"):
        context_frozen_loss(build_model("llama"), collate(make_talk(), "conversation"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"branch_at": torch.full((9,), 38)}, BadRow, "branch_at outside the 37 tokens"),
        ({"branch_at": torch.full((9,), -1)}, BadRow, "branch_at outside the 37 tokens"),
        ({"context_index": torch.full((9,), 2)}, BadRow, "no context among the 2"),
        (
            {"branch_at": torch.zeros(2).long()},
            UsageError,
            r"branch_at is \[2\], which does not fit",
        ),
        ({"branch_at": torch.zeros(9)}, UsageError, "branch_at is torch.float32; expected int64"),
        ({"attention_mask": torch.ones(9, 8).long()}, BadRow, "a label on padding|last context"),
    ],
)
def test_a_conversation_batch_by_hand_is_checked(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    batch = collate(make_talk(), "conversation") | changes
    if "attention_mask" in changes:
        batch["attention_mask"][0, 1:] = 0
    with pytest.raises(error, match=message):
        next(frozen_losses(build_model("llama"), batch))


def test_rows_beyond_the_positions_of_a_model_are_named() -> None:
    rows = [make_row(TALK, 30)]
    with pytest.raises(BadRow, match=r"row 0 \(70 tokens, 39 of them frozen\): longer than the 64"):
        next(frozen_losses(build_model("gpt2"), collate(rows, "conversation")))


def build_long_rope() -> Any:
    scaling = {
        "rope_type": "longrope",
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 16,
        "rope_theta": 10000.0,
    }
    return build_model("llama", rope_parameters=scaling)


def test_a_rope_that_turns_between_two_boundaries_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="two sides of that"):
        next(frozen_losses(build_long_rope(), collate(make_talk(), "conversation")))
    beyond = [make_row(TALK[:length], 4) for length in (20, 31)]
    model, alone = build_long_rope(), build_long_rope()
    walk(model, collate(beyond, "conversation"))
    train_alone(alone, beyond)
    assert_same_gradients(read_gradients(model), read_gradients(alone))
