"""The closed sets, the row schema and the reject record are those of the design."""

from __future__ import annotations

import datasets
import pytest

from pipeline.types import (
    FLAGS,
    IGNORE_LABEL,
    NUMERIC_COLUMNS,
    REJECT_CODES,
    ROW_SCHEMA,
    Reject,
    row_features,
)


def test_reject_codes_are_a_closed_set() -> None:
    assert {
        "bad_json",
        "not_an_object",
        "bad_encoding",
        "line_too_long",
        "missing_field",
        "wrong_type",
        "ambiguous_shape",
        "bad_decision_idx",
        "empty_context",
        "empty_continuation",
        "lone_surrogate",
        "duplicate_id",
        "template_refused",
        "server_refused",
        "unsupported_content",
        "no_end_of_turn",
        "not_renderable",
        "too_long",
        "continuation_too_long",
        "bad_ids",
        "control_tokens",
    } == REJECT_CODES


def test_flags_are_a_closed_set() -> None:
    assert {
        "truncated",
        "turns_dropped",
        "turn_cut",
        "raw_cut",
        "continuation_cut",
        "control_token_in_text",
        "end_of_turn_in_text",
        "double_bos",
        "no_bos",
        "prompt_not_prefix",
        "think_closed",
        "think_in_text",
        "arguments_coerced",
        "normalised_by_tokenizer",
        "sampled_ids",
    } == FLAGS


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
