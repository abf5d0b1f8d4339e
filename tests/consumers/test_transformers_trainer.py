"""transformers' own Trainer and collators train exactly the continuations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    Trainer,
    TrainingArguments,
)

from tests.consumers.trained_tokens import continuations_of, trained_runs


def build_trainer(model: Any, rows: Dataset, collator: Any, folder: Path) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        num_train_epochs=1,
        logging_steps=1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
    )
    return Trainer(model, arguments, train_dataset=rows, data_collator=collator)


def build_collator(kind: str, tokenizer: Any) -> Any:
    if kind == "padded":
        return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    return DataCollatorWithFlattening()


@pytest.mark.parametrize("kind", ["padded", "flat"])
def test_exactly_the_continuations_are_trained(
    model: Any, tokenizer: Any, rows: Dataset, tmp_path: Path, kind: str
) -> None:
    trainer = build_trainer(model, rows, build_collator(kind, tokenizer), tmp_path)
    runs = [run for batch in trainer.get_train_dataloader() for run in trained_runs(batch)]
    assert sorted(runs) == sorted(continuations_of(rows))


@pytest.mark.parametrize("kind", ["padded", "flat"])
def test_it_trains(model: Any, tokenizer: Any, rows: Dataset, tmp_path: Path, kind: str) -> None:
    trainer = build_trainer(model, rows, build_collator(kind, tokenizer), tmp_path)
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert len(losses) == 17
    assert sum(losses[-3:]) / 3 < losses[0] - 0.5


def test_trap_the_language_modeling_collator_cannot_pad_labels_or_trains_the_context_too(
    tokenizer: Any, rows: Dataset
) -> None:
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    tokens = rows.select(range(4)).select_columns(["input_ids", "attention_mask", "labels"])
    with pytest.raises(ValueError, match="Unable to create tensor"):
        collator(list(tokens))
    runs = trained_runs(collator(list(tokens.remove_columns("labels"))))
    assert [len(run) for run in runs] == [length - 1 for length in rows["total_len"][:4]]


def test_trap_a_position_ids_column_breaks_the_padding_collator(
    model: Any, tokenizer: Any, rows: Dataset, tmp_path: Path
) -> None:
    assert "position_ids" not in rows.column_names
    numbered = rows.map(lambda row: {"position_ids": list(range(row["total_len"]))})
    trainer = build_trainer(model, numbered, build_collator("padded", tokenizer), tmp_path)
    with pytest.raises(ValueError, match="position_ids"):
        next(iter(trainer.get_train_dataloader()))
