"""A key that no shape knows is told by the words of its name and by the form of its value."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Rejected
from pipeline.examples.shapes import read_row

Row = dict[str, Any]

USER = {"role": "user", "content": "2+2?"}
FIVE = {"role": "assistant", "content": "It is 5."}
TOOL = {"name": "look", "input_schema": {"type": "object"}}

BETTER = st.sampled_from(
    ["corrected", "ideal", "improved", "human", "gold", "chosen", "best", "new"]
)
ANSWER = st.sampled_from(["answer", "response", "completion", "output", "reply", "correction"])


def refuse(row: Row) -> Rejected:
    with pytest.raises(Rejected) as caught:
        read_row(row, "auto", "f:1")
    return caught.value


def spell(words: tuple[str, ...], case: str) -> str:
    if case == "camel":
        return words[0] + "".join(word.capitalize() for word in words[1:])
    return {"snake": "_", "kebab": "-"}[case].join(words)


@given(better=BETTER, answer=ANSWER, case=st.sampled_from(["camel", "snake", "kebab"]))
def test_no_spelling_of_a_better_answer_leaves_the_old_one_to_be_trained(
    better: str, answer: str, case: str
) -> None:
    name = spell((better, answer), case)
    assert refuse({"messages": [USER, FIVE], name: "It is 4."}).code == "ambiguous_shape"
    assert refuse({"messages": [USER, {**FIVE, name: "It is 4."}]}).code == "ambiguous_shape"
    record = {"info": {spell(("preferred", answer), case): "It is 4."}}
    assert refuse({"messages": [USER, FIVE], "meta": record}).code == "ambiguous_shape"
    same = read_row({"messages": [USER, FIVE], name: "It is 5."}, "auto", "f:1")
    assert name in same.unread


@pytest.mark.parametrize(
    "name", ["decisionIdx", "decision_indx", "Decision-Index", "decision_point"]
)
def test_a_decision_index_spelt_otherwise_is_not_passed_over(name: str) -> None:
    assert refuse({"messages": [USER, FIVE, USER, FIVE], name: 1}).reason.startswith(name)


@pytest.mark.parametrize("name", ["continuatoin", "Continuation", "chosn_", "Chosen", "correcton"])
def test_an_answer_under_a_misspelt_key_is_not_passed_over(name: str) -> None:
    row = {"messages": [USER, FIVE], name: "It is 4."}
    if name == "chosn_":
        assert (
            name in read_row(row, "auto", "f:1").unread
        )  # Too short to be told from another word.
    else:
        assert refuse(row).code == "ambiguous_shape"


@pytest.mark.parametrize(
    "more",
    [
        {"rejected_messages": [FIVE]},
        {"bad_answer": "It is 5."},
        {"initialResponse": "It is 5."},
        {"is_correct": False},
        {"rating": "bad"},
        {"label": "rejected"},
        {"system_instruction": "Be kind."},
        {"preamble": "Be kind."},
        {"user_query": "3+3?"},
        {"earlier": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
        {"past": [{"from": "human", "value": "Hi"}]},
        {"tool_list": [TOOL]},
        {"config": {"specs": [TOOL]}},
        {"Error": "boom"},
        {"ground_truth": "4"},
    ],
)
def test_what_a_name_or_a_form_says_is_not_passed_over(more: Row) -> None:
    error = refuse({"messages": [USER, FIVE], **more})
    assert error.code in ("ambiguous_shape", "missing_field")
    assert next(iter(more)) in error.reason


@pytest.mark.parametrize(
    "more",
    [
        {"answer_type": "number"},
        {"output_tokens": 3},
        {"response_id": "r-1"},
        {"model_name": "m"},
        {"score": 0.1},
        {"is_correct": True},
        {"ground_truth": "5"},
        {"user_query": "2+2?"},
        {"original_answer": "It is 6."},
        {"feedback": "Too short."},
        {"prompt_tokens": 3},
        {"people": [{"name": "Ann", "description": "a person"}]},
        {"system_fingerprint": "fp"},
    ],
)
def test_what_loses_nothing_is_counted_only(more: Row) -> None:
    assert read_row({"messages": [USER, FIVE], **more}, "auto", "f:1").unread == {*more}


@pytest.mark.parametrize(
    "said",
    [
        {"trainable": False},
        {"training": False},
        {"masked": True},
        {"ignore": True},
        {"preferred": False},
        {"label": "bad"},
        {"original_content": "It is 5."},
        {"alternatives": ["It is 4."]},
        {"train_detail": [{"begin_offset": 0, "end_offset": 2, "train": False}]},
    ],
)
def test_an_answer_whose_message_calls_it_the_worse_or_masks_it_is_refused(said: Row) -> None:
    assert refuse({"messages": [USER, {**FIVE, **said}]}).code == "ambiguous_shape"
    turns = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "It is 5.", **said}]
    assert refuse({"conversations": turns}).code == "ambiguous_shape"


@pytest.mark.parametrize(
    ("more", "is_lost"),
    [
        ({"scores": [0, 1]}, True),
        ({"rewards": [0.0, 1.0]}, True),
        ({"best_idx": 1}, True),
        ({"selected": 1}, True),
        ({"scores": [1, 1]}, False),
        ({"score": 0.5}, False),
    ],
)
def test_answers_that_the_row_tells_apart_are_not_trained_alike(more: Row, is_lost: bool) -> None:
    row = {"context": [USER], "continuations": ["It is 5.", "It is 4."], **more}
    if is_lost:
        assert refuse(row).code == "ambiguous_shape"
    else:
        assert read_row(row, "auto", "f:1").unread == {*more}


def test_a_verdict_beside_a_better_answer_is_of_the_old_one() -> None:
    row = {"messages": [USER, FIVE], "decision_idx": 1, "continuation": "4", "is_correct": False}
    assert read_row(row, "auto", "f:1").example.continuation == "4"
