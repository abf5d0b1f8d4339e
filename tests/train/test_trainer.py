"""The Trainer of frozen contexts: every row once an epoch, on one rank or two, and evaluation."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from pipeline import ContextFrozenCollator, LengthBatchSampler, context_frozen_loss
from pipeline.errors import BadRow, UsageError
from pipeline.train.step import count_items
from pipeline.train.trainer import ContextFrozenTrainer, EvenBatches
from tests.tiny_models import build_model, collate, make_rows

RANKS = 2
# Uneven for two ranks, ragged, of unlike weights.
SHAPES = ((1, 3), (2, 7), (9, 1), (24, 5), (3, 2), (11, 4), (5, 6))
EVAL_SHAPES = ((4, 3), (2, 9), (12, 2))


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_torch_thread: None) -> None:
    """Every test here trains a tiny model."""


class CountingCollator:
    """A collator that remembers the ids of the rows it was given."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.collate = ContextFrozenCollator("split")

    def __call__(self, rows: Any) -> Any:
        self.seen += [str(row["id"]) for row in rows]
        return self.collate(rows)


def make_split(shapes: Any, seed: int = 0) -> Dataset:
    return Dataset.from_list(
        [
            row | {"input_ids": row["input_ids"].tolist(), "total_len": len(row["input_ids"])}
            for row in make_rows(shapes, seed)
        ]
    )


def build_trainer(folder: Path, collator: Any = None, **settings: Any) -> ContextFrozenTrainer:
    trainer_settings = {
        name: settings.pop(name)
        for name in ("plan", "eval_dataset", "train_dataset", "compute_metrics")
        if name in settings
    }
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
    }
    return ContextFrozenTrainer(
        build_model("llama", num_hidden_layers=1),
        TrainingArguments(**(arguments | settings)),
        data_collator=collator,
        **({"train_dataset": make_split(SHAPES)} | trainer_settings),
    )


def eval_loss_of(model: Any, rows: Any = EVAL_SHAPES) -> float:
    with torch.no_grad():
        return float(context_frozen_loss(model.eval(), collate(make_rows(rows, seed=1))))


# --- dealing ---


@given(
    count=st.integers(1, 60),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 8),
    seed=st.none() | st.integers(0, 3),
)
def test_every_row_is_dealt_once_and_every_rank_takes_as_many_steps(
    count: int, batch_size: int, world_size: int, seed: int | None
) -> None:
    if count < world_size:
        with pytest.raises(UsageError, match="expected at least one each"):
            EvenBatches(count, batch_size, 0, world_size, seed)
        return
    ranks = [EvenBatches(count, batch_size, rank, world_size, seed) for rank in range(world_size)]
    for epoch in (0, 1):
        for rank in ranks:
            rank.set_epoch(epoch)
        dealt = [list(rank) for rank in ranks]
        assert {len(batches) for batches in dealt} == {len(ranks[0])}
        rows = [row for batches in dealt for batch in batches for row in batch]
        assert sorted(rows) == list(range(count))
        sizes = [len(batch) for batches in dealt for batch in batches]
        assert min(sizes) >= 1
        assert max(sizes) <= batch_size + (len(ranks[0]) == count // world_size)


def test_epochs_have_orders_of_their_own() -> None:
    sampler = EvenBatches(20, 4, 0, 1, seed=0)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first


# --- one process ---


def test_it_trains_each_row_once_an_epoch_and_evaluates_all_of_them(tmp_path: Path) -> None:
    collator = CountingCollator()
    trainer = build_trainer(tmp_path, collator, eval_strategy="no")
    trainer.train()
    assert Counter(collator.seen) == {f"row-{place}": 2 for place in range(len(SHAPES))}
    assert collator.seen[: len(SHAPES)] != collator.seen[len(SHAPES) :]
    losses = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_evaluation_during_training_gives_the_loss_of_all_rows_as_of_one_batch(
    tmp_path: Path, strategy: str
) -> None:
    held_out = make_split(EVAL_SHAPES, seed=1)
    trainer = build_trainer(
        tmp_path, eval_dataset=held_out, eval_strategy=strategy, eval_steps=2, eval_on_start=True
    )
    before = eval_loss_of(trainer.model)
    trainer.train()
    found = [each["eval_loss"] for each in trainer.state.log_history if "eval_loss" in each]
    assert len(found) == {"steps": 5, "epoch": 3}[strategy]
    assert found[0] == pytest.approx(before, rel=1e-5)
    assert found[-1] == pytest.approx(eval_loss_of(trainer.model), rel=1e-5)
    assert trainer.evaluate(held_out)["eval_loss"] == pytest.approx(found[-1])
    assert trainer.predict(held_out).metrics["test_loss"] == pytest.approx(found[-1])


def test_several_evaluation_sets_are_each_told(tmp_path: Path) -> None:
    sets = {"near": make_split(EVAL_SHAPES, seed=1), "far": make_split(SHAPES)}
    trainer = build_trainer(tmp_path, eval_dataset=sets, eval_strategy="no")
    metrics = trainer.evaluate()
    assert metrics["eval_near_loss"] == pytest.approx(eval_loss_of(trainer.model), rel=1e-5)
    assert metrics["eval_far_loss"] != metrics["eval_near_loss"]


def test_accumulated_batches_are_one_step_of_all_their_rows(tmp_path: Path) -> None:
    plan = [[3, 1], [0, 2]]
    trainer = build_trainer(
        tmp_path, num_train_epochs=1, gradient_accumulation_steps=2, plan=plan, max_grad_norm=0
    )
    expected = float(
        context_frozen_loss(trainer.model.train(), collate(make_rows(SHAPES)[:4])).detach()
    )
    trainer.train()
    (record,) = [each for each in trainer.state.log_history if "loss" in each]
    assert record["loss"] == pytest.approx(expected, abs=2e-4)


def test_a_resumed_run_takes_the_batches_that_were_left(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 5, "save_only_model": False}
    whole = CountingCollator()
    build_trainer(tmp_path / "whole", whole, **settings).train()
    cut = CountingCollator()
    build_trainer(tmp_path / "cut", cut, **settings, max_steps=5).train()
    rest = CountingCollator()
    build_trainer(tmp_path / "cut", rest, **settings).train(resume_from_checkpoint=True)
    # Four batches an epoch: the second of the second epoch is the next.
    assert rest.seen == whole.seen[-len(rest.seen) :]
    assert 0 < len(rest.seen) < len(SHAPES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is 0.1, which the context-fro"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last is True"),
        ({"compute_metrics": lambda found: {}}, "compute_metrics: this trainer computes"),
        ({"plan": [[0]]}, "num_train_epochs is 2, and plan has the batches of the whole run"),
    ],
)
def test_settings_that_would_have_no_effect_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build_trainer(tmp_path, **settings)


def test_rows_that_are_not_to_be_trained_are_refused(tmp_path: Path) -> None:
    rows = make_split(SHAPES).add_column("preference", ["rejected"] * len(SHAPES))  # type: ignore[call-arg]
    with pytest.raises(BadRow, match="preference is rejected"):
        build_trainer(tmp_path, train_dataset=rows).train()


# --- two ranks ---


def join_ranks(rank: int, folder: str) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    found = {
        "trainer": run_trainer(Path(folder)),
        "accelerate": run_accelerate(),
        "prepared": refuse_prepared_loader(),
    }
    Path(folder, f"rank{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def run_trainer(folder: Path) -> dict[str, Any]:
    collator = CountingCollator()
    trainer = build_trainer(
        folder / "trainer", collator, eval_strategy="no", max_grad_norm=0, optim="sgd"
    )
    trainer.train()
    trained = list(collator.seen)
    losses = [each["loss"] for each in trainer.state.log_history if "loss" in each]
    evaluated = [
        trainer.evaluate(make_split(shapes, seed=1))["eval_loss"]
        for shapes in (EVAL_SHAPES, EVAL_SHAPES[:1])
    ]
    weights = {
        name: value.double().sum().item() for name, value in trainer.model.named_parameters()
    }
    expected = [eval_loss_of(trainer.model, shapes) for shapes in (EVAL_SHAPES, EVAL_SHAPES[:1])]
    return {
        "trained": trained,
        "losses": losses,
        "evaluated": evaluated,
        "expected": expected,
        "weights": weights,
    }


def run_accelerate() -> dict[str, Any]:
    """The loop of docs/training.md."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True)
    collator = CountingCollator()
    rows = make_split(SHAPES)
    loader: Any = DataLoader(
        rows.with_format("numpy"),  # type: ignore[arg-type]
        batch_sampler=LengthBatchSampler(rows, 64, 32),
        collate_fn=collator,
    )
    model = build_model("llama", num_hidden_layers=1)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    losses: list[float] = []
    for batch in loader:
        num_items: Tensor = accelerator.reduce(count_items(batch), reduction="sum")  # type: ignore[assignment]
        loss = context_frozen_loss(model, batch, num_items)
        accelerator.backward(loss * accelerator.num_processes)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    weights = {name: value.double().sum().item() for name, value in model.named_parameters()}
    return {"trained": collator.seen, "losses": losses, "weights": weights}


def refuse_prepared_loader() -> str:
    rows = make_split(SHAPES)
    loader: Any = DataLoader(
        rows.with_format("numpy"),  # type: ignore[arg-type]
        batch_sampler=LengthBatchSampler(rows, rank=0, world_size=1),
        collate_fn=ContextFrozenCollator("split"),
    )
    try:
        Accelerator(cpu=True).prepare(loader)
    except UsageError as error:
        return str(error)
    return ""


@pytest.mark.nightly
def test_two_ranks_train_each_row_once_an_epoch_whoever_leads_them(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(join_ranks, (str(tmp_path),), nprocs=RANKS)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(RANKS)]
    for way, epochs in (("trainer", 2), ("accelerate", 1)):
        found = [rank[way] for rank in ranks]
        trained = Counter(id_ for each in found for id_ in each["trained"])
        assert trained == {f"row-{place}": epochs for place in range(len(SHAPES))}, way
        assert len(found[0]["losses"]) > 1
        assert found[0]["weights"] == found[1]["weights"]
    for rank in ranks:
        assert rank["trainer"]["evaluated"] == pytest.approx(rank["trainer"]["expected"], rel=1e-5)
        assert "of its own rank" in rank["prepared"]
