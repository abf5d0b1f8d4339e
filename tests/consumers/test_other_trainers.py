"""The rules of axolotl and LLaMA-Factory for data that is tokenised already, as code reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from transformers import DataCollatorForSeq2Seq

from tests.consumers.trained_tokens import continuations_of, trained_runs

# axolotl `utils/data/wrappers.py`: a map-style set with all three is taken as tokenised.
AXOLOTL_COLUMNS = {"input_ids", "attention_mask", "labels"}


@pytest.mark.parametrize("folder", ["quickstart_set", "train_columns_set"])
def test_axolotl_finds_its_three_columns(folder: str, request: pytest.FixtureRequest) -> None:
    splits = load_from_disk(str(request.getfixturevalue(folder)))
    for rows in splits.values():
        assert isinstance(rows, Dataset)
        assert set(rows.column_names) >= AXOLOTL_COLUMNS
        for row in rows:
            assert len(row["input_ids"]) == len(row["labels"]) == len(row["attention_mask"])
            assert set(row["attention_mask"]) == {1}


def test_splits_have_the_names_that_llama_factory_looks_for(train_columns_set: Path) -> None:
    splits = load_from_disk(str(train_columns_set))
    assert isinstance(splits, DatasetDict)
    assert set(splits) == {"train", "validation"}
    assert all(len(rows) for rows in splits.values())


def test_llama_factory_collates_every_column_of_a_train_set(
    train_columns_set: Path, tokenizer: Any
) -> None:
    # LLaMA-Factory forces remove_unused_columns=False; its SFT collator is a child of this one.
    rows = load_from_disk(str(train_columns_set))["train"]
    batch = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)(list(rows))
    assert batch["context_len"].tolist() == rows["context_len"][:]
    assert trained_runs(batch) == continuations_of(rows)


def test_trap_llama_factory_cannot_collate_the_full_columns(rows: Dataset, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="Unable to create tensor"):
        DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)(list(rows.select(range(4))))
