"""No key of a row is ignored in silence: it is read, it is refused by name, or it is counted."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import Rejected
from pipeline.examples.decisions import find_decision_points
from pipeline.examples.example import TrainingExample
from pipeline.examples.key_names import find_meaning
from pipeline.examples.outcomes import find_kind
from pipeline.examples.shapes import FORMATS, read_row
from pipeline.lines.known_keys import KNOWN_KEYS
from tests.mixed_rows import MARKED, forbidden_in, merge_rows, texts_of, wanted_in

Row = dict[str, Any]

USER = {"role": "user", "content": "2+2?"}
FIVE = {"role": "assistant", "content": "5"}
FOUR = {"role": "assistant", "content": "4"}
CHAT = [USER, FOUR]
LOOK = {"name": "look", "parameters": {"type": "object"}}
WRAPPED = {"type": "function", "function": LOOK}
CALL = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
# Names of the row, and what of a log is looked at though no example keeps it.
LOOKED_AT = {"id", "custom_id", "error", "status", "status_code"}
IDS = {"context_ids": [1, 2], "continuation_ids": [7, 8]}


def read(row: Row, format: str = "auto") -> TrainingExample:
    return read_row(row, format, "f:1").example


def unread(row: Row, format: str = "auto") -> frozenset[str]:
    return read_row(row, format, "f:1").unread


def refuse(row: Row, format: str = "auto") -> Rejected:
    with pytest.raises(Rejected) as caught:
        read_row(row, format, "f:1")
    return caught.value


def answers_of(example: TrainingExample) -> set[str]:
    """Return the texts that would be trained as answers, at every decision point."""
    points = find_decision_points(example, "all")
    answers = (point.continuation for point in points if not point.continuation_ids)
    return {
        text
        for answer in answers
        for text in texts_of(answer if isinstance(answer, str) else answer.get("content"))
    }


# ---- merged rows


@settings(max_examples=600)
@given(
    st.sampled_from(MARKED),
    st.sampled_from(MARKED),
    st.sampled_from(["auto", *FORMATS]),
    st.integers(0, 10**6),
)
def test_no_merged_row_trains_what_it_names_as_worse_as_original_or_as_thought(
    left: Row, right: Row, format: str, seed: int
) -> None:
    row = merge_rows(left, right, random.Random(seed))
    try:
        made = read(row, format)
    except Rejected:
        return
    answers = answers_of(made)
    assert not answers & forbidden_in(row)
    if not made.continuation_ids:
        assert wanted_in(row) <= answers


@given(st.sampled_from(MARKED), st.sampled_from(sorted(KNOWN_KEYS - LOOKED_AT)))
def test_a_known_key_with_a_text_of_its_own_is_used_or_named(row: Row, key: str) -> None:
    said = "WORSE of its own"
    try:
        made = read_row({**row, key: said}, "auto", "f:1")
    except Rejected:
        return
    assert said not in answers_of(made.example) or key in ("response", "completion", "output")
    assert key in made.unread or said in str(made.example.to_dict())


@pytest.mark.parametrize("format", sorted(FORMATS))
@given(data=st.data())
def test_a_null_key_counts_as_absent_whatever_the_key(format: str, data: st.DataObject) -> None:
    row = data.draw(st.sampled_from(MARKED))
    nulls = dict.fromkeys(data.draw(st.sets(st.sampled_from(sorted(KNOWN_KEYS)))))
    outcomes: list[Any] = []
    for each in (row, {**nulls, **row}):
        try:
            outcomes.append(read(each, format))
        except Rejected as error:
            outcomes.append(error.code)
    assert outcomes[0] == outcomes[1]


# ---- keys that would be lost


@pytest.mark.parametrize(
    ("format", "more"),
    [
        ("openai", {"continuation": "six"}),
        ("openai", {"decision_idx": 1}),
        ("openai", {"choices": [{"message": FIVE}]}),
        ("openai", {"chosen": "six", "rejected": "4"}),
        ("openai", {"rejected": "4"}),
        ("openai", {"worse": FOUR}),
        ("openai", {"better": "six"}),
        ("auto", {"output": "six"}),
        ("auto", {"answer": 6}),
        ("auto", {"original_response": "4"}),
        ("auto", {"correction": "six"}),
        ("auto", {"prompt": "another question"}),
        ("auto", {"history": [["a", "b"]]}),
        ("auto", {"instructions": "Be brief."}),
        ("auto", {"loss_mask": [0, 1]}),
        ("auto", {"labels": [-100, 5]}),
        ("auto", {"prompt_token_ids": [1, 2]}),
        ("auto", {"train": False}),
        ("auto", {"loss": 0}),
        ("auto", {"label": 0}),
        ("auto", {"reasoning_details": [{"text": "hm"}]}),
        ("auto", {"function_call": {"name": "look"}}),
        ("auto", {"info": {"deep": [{"tools": [WRAPPED]}]}}),
        ("auto", {"meta": {"chat_template_kwargs": {"enable_thinking": False}}}),
        ("auto", {"functions": [LOOK], "tools": [{**WRAPPED, "function": {"name": "go"}}]}),
        ("auto", {"system": "Be brief.", "system_prompt": "Be long."}),
        ("auto", {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}),
        ("auto", {"conversation": [USER, FIVE]}),
    ],
)
@pytest.mark.parametrize("id_", [{}, {"id": "a"}])
def test_a_key_that_would_be_lost_makes_the_row_ambiguous(format: str, more: Row, id_: Row) -> None:
    error = refuse({"messages": CHAT, **more, **id_}, format)
    assert error.code == "ambiguous_shape"
    assert any(key in error.reason for key in (*more, "tools", "system", "chat_template_kwargs"))


@pytest.mark.parametrize(
    "more",
    [
        # UltraChat's first message, Magpie's single turn, a renderer's copy.
        {"prompt": "2+2?", "prompt_id": "p"},
        {"instruction": "2+2?", "response": None, "text": "user: 2+2? assistant: 4"},
        {"output": "4 "},
        {"answer": "", "history": [], "functions": [], "rejected": ""},
        {"completion": [FOUR]},
        {"loss": 0.53, "label": "arithmetic", "labels": ["sums"], "status": "completed"},
        {"train": True, "label": True, "source": "web", "score": 0, "category": {"a": [1]}},
        {"metadata": {"tools": ["search"], "deep": {"system": "x"}}},
        {"error": None, "finish_reason": "stop", "stop_reason": "end_turn", "truncated": False},
        {"original_response": "5"},
        {"documents": "a file"},
    ],
)
def test_what_data_sets_keep_beside_a_conversation_does_no_harm(more: Row) -> None:
    plain = read({"messages": CHAT})
    if "documents" in more:
        assert refuse({"messages": CHAT, **more}).code == "ambiguous_shape"
        return
    assert read({"messages": CHAT, **more}) == plain


def test_the_other_keys_are_named_wherever_they_stand() -> None:
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": 1}]},
            {**FOUR, "annotations": [], "sentiment": "calm"},
        ],
        "score": 3,
        "empty": "",
    }
    assert unread(row) == {"score", "messages.sentiment", "messages.content.cache_control"}
    log = {
        "request": {"messages": [USER], "temperature": 0.5},
        "response": {"id": "r", "usage": {"n": 1}, "choices": [{"message": FOUR, "index": 1}]},
    }
    assert unread(log) == {"request.temperature", "response.usage", "choices.index"}
    turns = [{"from": "human", "value": "a", "lang": "en"}, {"from": "gpt", "value": "b"}]
    assert unread({"conversations": turns}) == {"conversations.lang"}


def test_an_id_beside_messages_turns_off_no_check() -> None:
    legacy = {"role": "assistant", "content": None, "function_call": {"name": "a"}}
    for more in ({"messages": [USER, legacy, FOUR]}, {"messages": CHAT, "images": ["a.png"]}):
        with_id, without = refuse({"id": "a", **more}), refuse(more)
        assert (with_id.code, with_id.reason) == (without.code, without.reason)


# ---- system, tools, options, notes


@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"id": "a", "messages": CHAT, "decision_idx": 1, "continuation": "4"},
        {"context": [USER], "better": "4"},
        {"prompt": [USER], "completion": [FOUR]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "4"}]},
        {"instruction": "a", "output": "4"},
        {"messages": [USER], "response": "4"},
    ],
)
def test_a_system_text_beside_the_messages_is_the_first_of_them(name: str, row: Row) -> None:
    without, made = read(row), read({**row, name: "Be kind."})
    assert made.messages == [{"role": "system", "content": "Be kind."}, *(without.messages or [])]
    assert made.decision_idx == (without.decision_idx or 0) + 1
    assert made.continuation == without.continuation
    assert TrainingExample.from_dict(made.to_dict()) == made


def test_a_system_text_beside_a_system_message_is_refused_unless_it_is_the_same() -> None:
    system = {"role": "system", "content": "Be kind."}
    assert read({"messages": [system, *CHAT], "system": "Be kind."}).messages == [system, *CHAT]
    assert refuse({"messages": [system, *CHAT], "system": "Be rude."}).code == "ambiguous_shape"
    raw = {"id": "a", "context": "<s>Be kind.</s>2+2?", "continuation": "4"}
    assert read({**raw, "system": "Be kind."}).context == raw["context"]
    assert refuse({**raw, "system": "Be rude."}).code == "ambiguous_shape"


@pytest.mark.parametrize(
    "more",
    [
        {"functions": [LOOK]},
        {"tool_definitions": [WRAPPED]},
        {"kwargs": {"tools": [WRAPPED]}},
        {"extra_body": {"tools": [WRAPPED]}},
        {"request": {"tools": [WRAPPED]}},
        {"proxy_server_request": {"body": {"tools": [WRAPPED]}}, "tools": []},
    ],
)
def test_tools_elsewhere_in_the_row_are_its_tools(more: Row) -> None:
    assert read({"messages": CHAT, **more}, "openai").tools == [WRAPPED]
    if "request" not in more:
        log = {"messages": [USER], "choices": [{"message": {**FOUR, "tool_calls": [CALL]}}]}
        assert read({**log, **more}).tools == [WRAPPED]


def test_options_elsewhere_reach_the_template() -> None:
    assert read({"messages": CHAT, "enable_thinking": False}).chat_template_kwargs == {
        "enable_thinking": False
    }
    body = {"chat_template_kwargs": {"enable_thinking": False}}
    log = {"request": {"messages": [USER], "extra_body": body}, "response": "4"}
    assert read(log).chat_template_kwargs == {"enable_thinking": False}
    # A server leaves this out of the prompt, so the log does not say what the prompt was.
    asked = {"request": {"messages": [USER], "enable_thinking": False}, "response": "4"}
    assert refuse(asked).code == "ambiguous_shape"
    prefilled = {"request": {"messages": [USER], "extra_body": {"continue_final_message": True}}}
    assert refuse({**prefilled, "response": "4"}).code == "not_renderable"


@pytest.mark.parametrize("row", MARKED[:17])
@pytest.mark.parametrize("id_", [{}, {"id": "a"}])
def test_what_a_row_says_of_itself_is_read_in_every_shape(row: Row, id_: Row) -> None:
    notes = {"weight": 0.25, "memories": ["m"], "reason": "why", "conversation": "talk"}
    bare = {key: value for key, value in row.items() if key != "id"}
    made = read({**bare, **id_, **notes})
    found = made.weight, made.memories, made.reason, made.conversation
    assert found == (0.25, ["m"], "why", "talk")


# ---- messages and ids


@pytest.mark.parametrize("said", [{"weight": 0}, {"train": False}, {"loss": False}, {"loss": 0}])
def test_weight_train_and_loss_of_a_message_say_one_thing(said: Row) -> None:
    made = read({"messages": [USER, FOUR, USER, {**FIVE, **said}]})
    assert (made.decision_idx, made.continuation) == (1, FOUR)
    assert made.message_weights == [1.0, 1.0, 1.0, 0.0]
    assert made.messages == [USER, FOUR, USER, FIVE]


def test_a_turn_that_was_cut_is_no_decision_point() -> None:
    made = read({"messages": [USER, FOUR, USER, {**FIVE, "finish_reason": "length"}]})
    assert made.decision_idx == 1
    assert refuse({"messages": [USER], "id": "a", "continuation": {**FIVE, "stop_reason": "END"}})


@pytest.mark.parametrize("key", ["prefix", "partial"])
def test_an_answer_begun_for_the_model_is_no_finished_turn(key: str) -> None:
    begun = {**FOUR, key: True}
    for row in (
        {"messages": [USER, begun]},
        {"id": "a", "messages": [USER], "continuation": begun},
        {"request": {"messages": [USER, begun]}, "response": "4"},
    ):
        assert refuse(row).code == "no_end_of_turn"
    assert read({"messages": [USER, {**FOUR, key: False}]})


@pytest.mark.parametrize(
    "key", ["token_ids", "loss_mask", "better", "rejected", "continuation", "decision_idx"]
)
def test_a_message_that_says_more_than_its_text_is_refused_by_name(key: str) -> None:
    error = refuse({"messages": [USER, {**FOUR, key: [1]}]})
    assert error.code == "ambiguous_shape"
    assert f"messages[1].{key}" in error.reason


@pytest.mark.parametrize(
    "harmless",
    [
        {"loss_mask": [1, 1]},
        {"response_mask": [0, 0, 1, 1]},
        {"labels": [7, 8]},
        {"labels": [-100, -100, 7, 8]},
        {"attention_mask": [1, 1, 1, 1]},
        {"finish_reason": "stop", "status": 200, "stop_reason": 151645},
    ],
)
def test_a_mask_of_all_that_is_trained_is_honoured(harmless: Row) -> None:
    assert read({**IDS, **harmless}) == read(IDS)


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"loss_mask": [0, 0]}, "bad_ids"),
        ({"loss_mask": [1]}, "bad_ids"),
        ({"response_mask": [1, 0.5]}, "bad_ids"),
        ({"labels": [-100, -100]}, "ambiguous_shape"),
        ({"attention_mask": [0, 1, 1, 1]}, "ambiguous_shape"),
        ({"finish_reason": "length"}, "no_end_of_turn"),
        ({"finish_reason": "max_tokens"}, "no_end_of_turn"),
        ({"stop_reason": "\n\n"}, "no_end_of_turn"),
        ({"truncated": True}, "no_end_of_turn"),
        ({"status": 500}, "missing_field"),
        ({"status": "failed"}, "missing_field"),
        ({"error": "boom"}, "missing_field"),
    ],
)
def test_a_mask_or_an_outcome_that_says_otherwise_is_refused_by_name(more: Row, code: str) -> None:
    error = refuse({**IDS, **more})
    assert error.code == code
    assert any(key in error.reason for key in more)


@pytest.mark.parametrize(
    ("choice", "more", "code"),
    [
        ({"finish_reason": None}, {}, "no_end_of_turn"),
        ({"finish_reason": "stop", "stop_reason": "###"}, {}, "no_end_of_turn"),
        ({"loss_mask": [0]}, {}, "ambiguous_shape"),
        ({}, {"status": 503}, "missing_field"),
        ({}, {"error": {"message": "boom"}}, "missing_field"),
    ],
)
def test_an_answer_of_a_log_that_was_cut_or_failed_is_refused(
    choice: Row, more: Row, code: str
) -> None:
    response = {"choices": [{"message": FOUR, **choice}], **more}
    assert refuse({"request": {"messages": [USER]}, "response": response}).code == code


def test_a_pair_of_one_answer_is_refused() -> None:
    for row in (
        {"context": [USER], "better": "4", "worse": "4"},
        {"prompt": [USER], "chosen": [FOUR], "rejected": [FOUR]},
        {"id": "a", "messages": [USER], "continuations": ["4", "5"], "rejected": FIVE},
        {"id": "a", "messages": CHAT, "rejected": FOUR},
    ):
        assert refuse(row).code == "ambiguous_shape"


def test_a_row_of_the_own_shape_needs_no_id() -> None:
    made = read({"messages": [USER, FIVE], "decision_idx": 1, "continuation": "4"})
    assert (made.id, made.continuation, made.decision_idx) == ("f:1", "4", 1)


@example({"a" * 300: 1})
@given(st.dictionaries(st.text(max_size=9), st.integers(1), max_size=5))
def test_any_name_of_a_key_can_be_counted(noise: Row) -> None:
    # However it is spelt, a key that says how an answer ended, or means a known one, is read.
    known = {key for key in noise if key in KNOWN_KEYS or find_kind(key) or find_meaning(key)}
    foreign = {key: value for key, value in noise.items() if key not in known}
    row = json.loads(json.dumps({"messages": CHAT, **foreign}))
    assert unread(row) == set(foreign)
