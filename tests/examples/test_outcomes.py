"""An answer that its log calls cut or failed is not trained, however the log spells it."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import Rejected
from pipeline.examples.shapes import read_row

Row = dict[str, Any]

USER = {"role": "user", "content": "2+2?"}
FOUR = {"role": "assistant", "content": "4"}


@pytest.mark.parametrize("place", ["row", "choice", "response", "message"])
@pytest.mark.parametrize(
    "said",
    [
        {"finish_reason": "LENGTH"},
        {"finishReason": "MAX_TOKENS"},
        {"finish_reason": {"type": "length", "length": 16}},
        {"finish_reason": ["length"]},
        {"done_reason": "length"},
        {"stop_reason": "###"},
        {"stopReason": "max_tokens"},
        {"matched_stop": "###"},
        {"stop_sequence": "###"},
        {"truncated": "true"},
        {"is_truncated": 1},
        {"incomplete_details": {"reason": "max_output_tokens"}},
        {"finished": False},
        {"status": "500"},
        {"exit_status": "error"},
        {"error": {"message": "boom"}},
    ],
)
def test_an_answer_that_was_cut_or_failed_is_no_row(said: Row, place: str) -> None:
    row: Row = {"messages": [USER, FOUR]}
    if place == "row":
        row |= said
    elif place == "message":
        row = {"messages": [USER, {**FOUR, **said}]}
    elif place == "choice":
        row = {"messages": [USER], "choices": [{"message": FOUR, **said}]}
    else:
        row = {
            "request": {"messages": [USER]},
            "response": {"choices": [{"message": FOUR}], **said},
        }
    with pytest.raises(Rejected) as caught:
        read_row(row, "auto", "f:1")
    assert caught.value.code in ("no_end_of_turn", "missing_field")


@pytest.mark.parametrize(
    "said",
    [
        {"finish_reason": "STOP"},
        {"finish_reason": {"type": "stop"}},
        {"stop_reason": 151645},
        {"stop_reason": "end_turn"},
        {"matched_stop": 151645},
        {"status": 200},
        {"exit_status": "Submitted"},
        {"truncated": False},
        {"finished": True},
        {"error": None},
    ],
)
def test_an_answer_that_was_ended_is_one(said: Row) -> None:
    log = {"messages": [USER], "choices": [{"message": FOUR, **said}]}
    assert read_row(log, "auto", "f:1").example.continuation == FOUR
    assert read_row({"messages": [USER, FOUR], **said}, "auto", "f:1").example.continuation == FOUR


def test_a_turn_that_was_cut_earlier_is_context_and_no_decision_point() -> None:
    cut = {"role": "assistant", "content": "Wai", "stop_reason": "max_tokens"}
    example = read_row({"messages": [USER, cut, USER, FOUR]}, "auto", "f:1").example
    assert example.message_weights == [1.0, 0.0, 1.0, 1.0]
    assert example.continuation == FOUR


@pytest.mark.parametrize("name", ["mask", "train_mask", "token_weights", "generation_mask"])
def test_a_mask_of_any_name_that_leaves_ids_out_is_not_passed_over(name: str) -> None:
    row = {"context_ids": [1, 2], "continuation_ids": [7, 8], name: [0, 1]}
    with pytest.raises(Rejected, match=name):
        read_row(row, "auto", "f:1")
    assert read_row({**row, name: [1, 1]}, "auto", "f:1").unread == {name}
