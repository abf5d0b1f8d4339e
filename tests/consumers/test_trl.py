"""TRL's SFTTrainer trains exactly the continuations, and what its defaults would do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.consumers.trained_tokens import continuations_of, trained_runs

trl = pytest.importorskip("trl", reason="trl is not installed: pip install trl==1.16.0")


def build_trainer(model: Any, tokenizer: Any, rows: Dataset, folder: Path, **settings: Any) -> Any:
    arguments: dict[str, Any] = {
        "max_length": None,
        "per_device_train_batch_size": 4,
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "logging_steps": 1,
        "save_strategy": "no",
    }
    return trl.SFTTrainer(
        model,
        args=trl.SFTConfig(output_dir=str(folder), **(arguments | settings)),
        train_dataset=rows,
        processing_class=tokenizer,
    )


def all_trained_runs(trainer: Any) -> list[Any]:
    return [run for batch in trainer.get_train_dataloader() for run in trained_runs(batch)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dataset_kwargs": {"skip_prepare_dataset": True}},
        {"padding_free": True},
        {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": 1024},
    ],
    ids=["recommended", "unprepared", "padding-free", "unprepared, default max_length"],
)
def test_exactly_the_continuations_are_trained(
    model: Any, tokenizer: Any, rows: Dataset, tmp_path: Path, settings: dict[str, Any]
) -> None:
    trainer = build_trainer(model, tokenizer, rows, tmp_path, **settings)
    assert sorted(all_trained_runs(trainer)) == sorted(continuations_of(rows))


def test_it_trains(model: Any, tokenizer: Any, rows: Dataset, tmp_path: Path) -> None:
    trainer = build_trainer(model, tokenizer, rows, tmp_path, learning_rate=1e-2, max_steps=12)
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert len(losses) == 12
    assert sum(losses[-3:]) / 3 < losses[0] - 0.5


def test_trap_a_max_length_cuts_rows_and_drops_those_without_continuation(
    model: Any, tokenizer: Any, rows: Dataset, tmp_path: Path
) -> None:
    trainer = build_trainer(model, tokenizer, rows, tmp_path, max_length=256)
    assert max(map(len, trainer.train_dataset["input_ids"])) == 256
    # Rows whose context fills the 256 tokens are gone; the config's default is 1024.
    assert len(trainer.train_dataset) == sum(length < 256 for length in rows["context_len"])
    assert trl.SFTConfig(output_dir=str(tmp_path), bf16=False).max_length == 1024


def test_trap_packing_keeps_labels_and_loses_the_other_columns(
    model: Any, tokenizer: Any, rows: Dataset, tmp_path: Path
) -> None:
    trainer = build_trainer(model, tokenizer, rows, tmp_path, packing=True, max_length=768)
    assert set(trainer.train_dataset.column_names) == {"input_ids", "labels", "seq_lengths"}
    assert sorted(all_trained_runs(trainer)) == sorted(continuations_of(rows))


def test_trap_a_mask_column_in_place_of_labels_trains_every_token(
    model: Any, tokenizer: Any, rows: Dataset, tmp_path: Path
) -> None:
    masked = rows.map(
        lambda row: {"completion_mask": [int(label != -100) for label in row["labels"]]},
        remove_columns=["labels"],
    )
    trainer = build_trainer(model, tokenizer, masked, tmp_path)
    trained = sum(map(len, all_trained_runs(trainer)))
    assert trained == sum(rows["total_len"]) - len(rows)


def test_trap_gradient_checkpointing_is_on_by_default(tmp_path: Path) -> None:
    # The frozen step refuses it, since it drops the context's cache.
    assert trl.SFTConfig(output_dir=str(tmp_path), bf16=False).gradient_checkpointing
