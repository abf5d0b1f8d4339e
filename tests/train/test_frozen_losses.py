"""The loss of a batch in parts, against a full forward whose context is cut off by hooks."""

from __future__ import annotations

import copy

import pytest
import torch

from pipeline.errors import UsageError
from pipeline.train.step import context_frozen_loss, frozen_losses
from tests.tiny_models import (
    assert_same_gradients,
    build_model,
    collate,
    every_family,
    make_rows,
    read_gradients,
)
from tests.train.test_step import reference_loss


@every_family
def test_parts_of_one_continuation_add_up_to_the_gradient_of_a_full_forward(family: str) -> None:
    model = build_model(family)
    reference = copy.deepcopy(model)
    batch = collate(make_rows())
    losses: list[float] = []
    for loss in frozen_losses(model, batch, max_tokens=1):
        loss.backward()
        losses.append(loss.item())
    expected = reference_loss(reference, batch)
    expected.backward()
    assert len(losses) == len(batch["input_ids"])
    assert sum(losses) == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(read_gradients(model), read_gradients(reference))


def test_parts_of_a_grouped_batch_add_up_to_its_loss_and_gradient() -> None:
    model, whole = build_model("llama"), build_model("llama")
    batch = collate(make_rows(), "grouped")
    width = batch["input_ids"].shape[1]
    losses: list[torch.Tensor] = []
    for loss in frozen_losses(model, batch, 7, max_tokens=2 * width):
        loss.backward()
        losses.append(loss.detach())
    expected = context_frozen_loss(whole, batch, 7)
    expected.backward()
    assert len(losses) == -(-len(batch["input_ids"]) // 2)
    torch.testing.assert_close(sum(losses), expected.detach(), rtol=1e-5, atol=1e-5)
    assert_same_gradients(read_gradients(model), read_gradients(whole))


def test_a_budget_of_no_tokens_is_refused() -> None:
    with pytest.raises(UsageError, match="max_tokens is 0"):
        next(frozen_losses(build_model("llama"), collate(make_rows()), max_tokens=0))
