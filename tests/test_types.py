"""The closed sets, the row schema and the reject record are those of the design."""

from __future__ import annotations

import datasets
import pytest

from pipeline.types import (
    IGNORE_LABEL,
    NUMERIC_COLUMNS,
    ROW_SCHEMA,
    Reject,
    row_features,
)


def test_a_saved_row_has_these_columns_in_this_order() -> None:
    assert [(field.name, str(field.type)) for field in ROW_SCHEMA] == [
        ("input_ids", "list<item: int32>"),
        ("labels", "list<item: int32>"),
        ("attention_mask", "list<item: int8>"),
        ("context_len", "int32"),
        ("total_len", "int32"),
        ("context_hash", "string"),
        ("dropped_tokens", "int32"),
        ("dropped_messages", "int32"),
        ("flags", "list<item: string>"),
        ("id", "string"),
        ("conversation", "string"),
        ("source", "string"),
        ("decision_idx", "int32"),
        ("preference", "string"),
        ("reason", "string"),
        ("memories", "list<item: string>"),
        ("weight", "float"),
    ]


def test_the_columns_for_training_are_all_numbers() -> None:
    assert NUMERIC_COLUMNS == (
        "input_ids",
        "labels",
        "attention_mask",
        "context_len",
        "total_len",
        "dropped_tokens",
        "dropped_messages",
        "decision_idx",
        "weight",
    )
    strings = [name for name in NUMERIC_COLUMNS if "string" in str(ROW_SCHEMA.field(name).type)]
    assert strings == []


def test_no_row_has_position_ids() -> None:
    # The standard Trainer's collator crashes on that column.
    assert "position_ids" not in ROW_SCHEMA.names


@pytest.mark.parametrize("columns", ["full", "train"])
def test_features_are_values_and_lists_of_values_only(columns: str) -> None:
    features = row_features(columns)
    inner = [
        feature.feature if isinstance(feature, datasets.List) else feature
        for feature in features.values()
    ]
    assert {type(feature) for feature in inner} == {datasets.Value}


def test_features_give_back_the_schema() -> None:
    schema = row_features().arrow_schema
    assert [(field.name, field.type) for field in schema] == [
        (field.name, field.type) for field in ROW_SCHEMA
    ]
    assert list(row_features("train")) == list(NUMERIC_COLUMNS)


def test_the_ignored_label_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORE_LABEL


def test_a_reject_becomes_its_six_keys() -> None:
    reject = Reject("a.jsonl", 4, "x", "bad_json", "torn", "{")
    assert reject.to_dict() == {
        "file": "a.jsonl",
        "line": 4,
        "id": "x",
        "code": "bad_json",
        "reason": "torn",
        "excerpt": "{",
    }


def test_a_reject_of_an_unknown_code_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="no_such_code"):
        Reject("a.jsonl", 4, "x", "no_such_code", "", "")
