"""What a user writes on one line: each field checked, each fault named, nothing re-typed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataRefused, Rejected, UnreadableFile, UsageError
from pipeline.examples.example import (
    TrainingExample,
    find_last_assistant,
    load_examples,
    save_examples,
)
from pipeline.lines.json_text import parse_line
from tests.conftest import write_lines

RAW = {"id": "a", "context": "2+2=", "continuation": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
CHAT = {
    "id": "c",
    "messages": [SYSTEM, USER, ASSISTANT, USER],
    "decision_idx": 2,
    "continuation": "Hey",
}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def example_of(base: dict[str, Any] = RAW, **changes: Any) -> TrainingExample:
    """Return the example of a line with changes; a change to ``...`` removes the key."""
    values = {**base, **changes}
    return TrainingExample.from_dict(
        {key: value for key, value in values.items() if value is not ...}
    )


def refusal_of(base: dict[str, Any] = RAW, **changes: Any) -> Rejected:
    with pytest.raises(Rejected) as caught:
        example_of(base, **changes)
    return caught.value


# ---- shapes


def test_a_raw_context_is_kept_as_text() -> None:
    example = example_of(reason="why", memories=["m"])
    assert (example.context, example.messages, example.decision_idx) == ("2+2=", None, None)
    assert (example.continuation, example.reason, example.memories) == ("4", "why", ["m"])


def test_messages_with_a_decision_point() -> None:
    example = example_of(CHAT)
    assert example.context is None
    assert example.messages == CHAT["messages"]
    assert (example.decision_idx, example.continuation) == (2, "Hey")


def test_a_context_of_messages_is_all_context() -> None:
    example = example_of(context=[SYSTEM, USER])
    assert (example.context, example.messages, example.decision_idx) == (None, [SYSTEM, USER], 2)


def test_a_context_of_messages_may_end_with_the_assistant() -> None:
    # The word context says that all of it is; `messages` would leave the index open.
    assert example_of(context=[USER, ASSISTANT]).decision_idx == 2


def test_a_context_of_messages_may_have_a_decision_point() -> None:
    assert example_of(context=[SYSTEM, USER, ASSISTANT], decision_idx=2).decision_idx == 2


def test_messages_that_stop_at_the_prompt_need_no_index() -> None:
    assert example_of(CHAT, messages=[SYSTEM, USER], decision_idx=...).decision_idx == 2


def test_the_last_message_is_the_continuation_where_none_is_given() -> None:
    example = example_of(CHAT, messages=[USER, ASSISTANT], decision_idx=..., continuation=...)
    assert (example.decision_idx, example.continuation) == (1, ASSISTANT)


def test_the_last_assistant_is_found_and_its_absence_refused() -> None:
    assert find_last_assistant([USER, ASSISTANT, USER, ASSISTANT]) == 3
    with pytest.raises(Rejected) as caught:
        find_last_assistant([SYSTEM, USER])
    assert caught.value.code == "missing_field"


@pytest.mark.parametrize("decision_idx", [2, 4])
def test_the_decision_point_is_the_assistants_message_or_the_end(decision_idx: int) -> None:
    assert example_of(CHAT, decision_idx=decision_idx).decision_idx == decision_idx


@pytest.mark.parametrize("decision_idx", [0, 1, 3, 5, -1, -2, True, False, 1.0, 2.0, "2", [2], {}])
def test_any_other_decision_point_is_refused(decision_idx: Any) -> None:
    assert refusal_of(CHAT, decision_idx=decision_idx).code == "bad_decision_idx"


def test_a_decision_point_without_context_is_refused() -> None:
    assert refusal_of(CHAT, messages=[ASSISTANT, USER], decision_idx=0).code == "empty_context"
    assert refusal_of(CHAT, messages=[ASSISTANT], decision_idx=..., continuation=...).code == (
        "empty_context"
    )


def test_an_index_left_out_before_an_assistants_message_is_not_guessed() -> None:
    refusal = refusal_of(CHAT, messages=[USER, ASSISTANT], decision_idx=...)
    assert refusal.code == "missing_field"
    assert refusal.reason.startswith("decision_idx: ")


# ---- faults, by field


@pytest.mark.parametrize(
    ("base", "changes", "code", "field"),
    [
        (RAW, {"id": ...}, "missing_field", "id"),
        (RAW, {"id": None}, "missing_field", "id"),
        (RAW, {"id": ""}, "missing_field", "id"),
        (RAW, {"id": True}, "wrong_type", "id"),
        (RAW, {"id": 1.0}, "wrong_type", "id"),
        (RAW, {"id": ["a"]}, "wrong_type", "id"),
        (RAW, {"context": ...}, "missing_field", "context or messages"),
        (RAW, {"context": None}, "missing_field", "context or messages"),
        (RAW, {"context": ""}, "empty_context", "context"),
        (RAW, {"context": []}, "empty_context", "context"),
        (RAW, {"context": 7}, "wrong_type", "context"),
        (RAW, {"context": {"role": "user"}}, "wrong_type", "context"),
        (RAW, {"context": [USER, "x"]}, "wrong_type", "context[1]"),
        (RAW, {"messages": [USER]}, "ambiguous_shape", "found both context and messages"),
        (RAW, {"messages": []}, "ambiguous_shape", "found both context and messages"),
        (RAW, {"decision_idx": 1}, "ambiguous_shape", "decision_idx"),
        (RAW, {"continuation": ...}, "missing_field", "continuation"),
        (RAW, {"continuation": None}, "missing_field", "continuation"),
        (RAW, {"continuation": ""}, "empty_continuation", "continuation"),
        (RAW, {"continuation": 4}, "wrong_type", "continuation"),
        (RAW, {"continuation": ["4"]}, "wrong_type", "continuation"),
        (RAW, {"continuation": USER}, "wrong_type", "continuation.role"),
        (RAW, {"reason": 3}, "wrong_type", "reason"),
        (RAW, {"reason": ["x"]}, "wrong_type", "reason"),
        (RAW, {"memories": 3}, "wrong_type", "memories"),
        (RAW, {"memories": [3]}, "wrong_type", "memories"),
        (RAW, {"memories": [["x"]]}, "wrong_type", "memories"),
        (RAW, {"memories": {"a": "b"}}, "wrong_type", "memories"),
        (RAW, {"memories": ["x", None]}, "wrong_type", "memories"),
        (RAW, {"tools": "search"}, "wrong_type", "tools"),
        (RAW, {"tools": {"name": "x"}}, "wrong_type", "tools"),
        (RAW, {"tools": ["x"]}, "wrong_type", "tools"),
        (RAW, {"chat_template_kwargs": []}, "wrong_type", "chat_template_kwargs"),
        (RAW, {"chat_template_kwargs": "x"}, "wrong_type", "chat_template_kwargs"),
        (RAW, {"weight": "1"}, "wrong_type", "weight"),
        (RAW, {"weight": True}, "wrong_type", "weight"),
        (RAW, {"weight": -0.1}, "wrong_type", "weight"),
        (RAW, {"weight": float("nan")}, "wrong_type", "weight"),
        (RAW, {"weight": float("inf")}, "wrong_type", "weight"),
        (RAW, {"weight": 1e39}, "wrong_type", "weight"),
        (RAW, {"weight": 10**400}, "wrong_type", "weight"),
        (RAW, {"conversation": 3}, "wrong_type", "conversation"),
        (CHAT, {"messages": []}, "empty_context", "messages"),
        (CHAT, {"messages": "hi"}, "wrong_type", "messages"),
        (CHAT, {"messages": {"role": "user"}}, "wrong_type", "messages"),
        (CHAT, {"messages": [USER, None]}, "wrong_type", "messages[1]"),
        (CHAT, {"continuation": ...}, "missing_field", "continuation"),
        (CHAT, {"messages": [USER], "decision_idx": ..., "continuation": ...}, "missing_field", ""),
    ],
)
def test_a_fault_is_refused_with_its_code_and_field(
    base: dict[str, Any], changes: dict[str, Any], code: str, field: str
) -> None:
    refusal = refusal_of(base, **changes)
    assert refusal.code == code
    assert refusal.reason.startswith(field)


def test_a_refusal_shows_little_of_what_it_found() -> None:
    secret = "s" * 500
    for changes in (
        {"reason": [secret]},
        {"memories": [[secret]]},
        {"messages": [{"role": secret}, USER], "context": ..., "decision_idx": 0},
    ):
        assert len(str(refusal_of(RAW, **changes))) < 250


def test_keys_that_are_not_ours_are_left_alone() -> None:
    assert example_of(position_ids=[1], score=float("nan"), source="web") == example_of()


# ---- values are kept


@pytest.mark.parametrize(
    ("given_id", "kept"),
    [("01", "01"), (1, "1"), (-7, "-7"), (0, "0"), (" ", " "), ("null", "null")],
)
def test_an_id_is_text_and_a_number_its_digits(given_id: Any, kept: str) -> None:
    assert example_of(id=given_id).id == kept


@pytest.mark.parametrize(
    ("memories", "kept"),
    [(None, []), (..., []), ([], []), ("one", ["one"]), (["a", "b"], ["a", "b"])],
)
def test_memories_are_a_list_of_texts(memories: Any, kept: list[str]) -> None:
    assert example_of(memories=memories).memories == kept


@pytest.mark.parametrize(
    "text", [" ", "\n", "\n\n 4", "null", "007", "2024-03-01", "1e5", "\u2028"]
)
def test_a_continuation_is_kept_verbatim(text: str) -> None:
    assert example_of(continuation=text).continuation == text


def test_a_message_as_continuation_gets_its_role_said() -> None:
    call = {"function": {"name": "f", "arguments": "{}"}, "type": "function", "id": "abcdefghi"}
    assert example_of(continuation={"content": "x"}).continuation == {
        "role": "assistant",
        "content": "x",
    }
    assert example_of(
        CHAT, continuation={"role": "assistant", "tool_calls": [call]}
    ).continuation == {
        "role": "assistant",
        "tool_calls": [call],
    }


@pytest.mark.parametrize(
    ("weight", "kept"), [(None, 1.0), (..., 1.0), (0, 0.0), (0.25, 0.25), (2, 2.0)]
)
def test_a_weight_is_one_unless_said(weight: Any, kept: float) -> None:
    assert example_of(weight=weight).weight == kept


def test_a_conversation_is_named_by_the_example_unless_said() -> None:
    assert example_of().conversation == "a"
    assert example_of(conversation="talk").conversation == "talk"


def test_what_was_given_is_not_changed() -> None:
    values = json.loads(json.dumps({**CHAT, "tools": [{"type": "function"}], "memories": ["m"]}))
    before = json.loads(json.dumps(values))
    TrainingExample.from_dict(values)
    assert values == before


@pytest.mark.parametrize("base", [RAW, CHAT], ids=["raw", "chat"])
@given(
    text=TEXTS,
    reason=st.text(st.characters(exclude_categories=["Cs"])),
    memories=st.lists(TEXTS, max_size=3),
    weight=st.floats(0, 3e38),
    conversation=TEXTS,
)
def test_an_example_comes_back_from_its_own_line(
    base: dict[str, Any],
    text: str,
    reason: str,
    memories: list[str],
    weight: float,
    conversation: str,
) -> None:
    example = example_of(
        base,
        continuation=text,
        reason=reason,
        memories=memories,
        weight=weight,
        conversation=conversation,
    )
    line = json.dumps(example.to_dict(), ensure_ascii=False)
    assert TrainingExample.from_dict(parse_line(line)) == example


def test_fields_that_say_nothing_are_left_out_of_the_line() -> None:
    assert example_of().to_dict() == {**RAW, "reason": "", "memories": []}
    assert example_of(CHAT).to_dict() == {**CHAT, "reason": "", "memories": []}
    full = {
        "tools": [{"a": 1}],
        "chat_template_kwargs": {"x": 1},
        "weight": 0.0,
        "conversation": "t",
    }
    assert example_of(CHAT, **full).to_dict() == {**CHAT, "reason": "", "memories": [], **full}


def test_an_example_of_one_line_of_code_is_complete() -> None:
    example = TrainingExample("a", "2+2=", "4")
    assert TrainingExample.from_dict(example.to_dict()).to_dict() == example.to_dict()


def test_examples_with_tensors_can_be_compared() -> None:
    torch = pytest.importorskip("torch")
    left, right = example_of(), example_of()
    left.input_ids, right.input_ids = torch.tensor([1, 2]), torch.tensor([1, 3])
    assert left == right
    right.context_len = 1
    assert left != right


# ---- files


def test_saved_examples_load_as_they_were(tmp_path: Path) -> None:
    text = "é e\u0301 \u2028 \u0085 👩‍👧 \t\r\n\x00 <|im_end|> null"
    examples = [
        example_of(id=1, context=text, continuation=text, reason=text, memories=[text, ""]),
        example_of(CHAT, tools=[{"type": "function", "function": {"name": "f", "strict": 1.0}}]),
    ]
    path = tmp_path / "examples.jsonl"
    save_examples(examples, path)
    assert load_examples(path) == examples
    assert path.read_bytes().count(b"\n") == 2
    assert "👩‍👧".encode() in path.read_bytes()


def test_no_examples_make_an_empty_file(tmp_path: Path) -> None:
    save_examples([], tmp_path / "none.jsonl")
    assert (tmp_path / "none.jsonl").read_bytes() == b""
    assert load_examples(tmp_path / "none.jsonl") == []


def test_the_bundled_examples_load_and_come_back(bundled_examples: Path, tmp_path: Path) -> None:
    examples = load_examples(bundled_examples)
    assert len(examples) == len(bundled_examples.read_bytes().splitlines())
    save_examples(examples, tmp_path / "again.jsonl")
    assert load_examples(tmp_path / "again.jsonl") == examples


def test_a_folder_a_glob_and_a_compressed_file_load(tmp_path: Path) -> None:
    write_lines(tmp_path / "b.jsonl", [{**RAW, "id": "b"}])
    write_lines(tmp_path / "a.jsonl", [RAW])
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps({**RAW, "id": "c"}).encode()))
    assert [example.id for example in load_examples(tmp_path)] == ["a", "b", "c"]
    assert [example.id for example in load_examples(f"{tmp_path}/[ab].jsonl")] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('{"id": "b", "context": "x"', "bad_json"),
        ('{"id": "b", "context": "x"}', "missing_field"),
        ("[]", "not_an_object"),
        ('{"id": "b", "context": "\\ud83d", "continuation": "y"}', "lone_surrogate"),
    ],
)
def test_a_line_that_is_no_example_is_named_by_file_and_line(
    tmp_path: Path, line: str, code: str
) -> None:
    path = write_lines(tmp_path / "examples.jsonl", [RAW, "", line])
    with pytest.raises(DataRefused, match=rf"examples\.jsonl:3: {code}: "):
        load_examples(path)


def test_a_line_of_another_encoding_is_named_too(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_bytes(json.dumps(RAW).encode() + b'\n{"id": "caf\xe9"}\n')
    with pytest.raises(DataRefused, match=r"examples\.jsonl:2: bad_encoding: "):
        load_examples(path)


def test_a_file_that_cannot_be_read_to_its_end_is_refused_whole(tmp_path: Path) -> None:
    packed = gzip.compress(json.dumps(RAW).encode() * 50)
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(UnreadableFile, match=r"cut\.jsonl\.gz"):
        load_examples(tmp_path / "cut.jsonl.gz")


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.jsonl"):
        load_examples(tmp_path / "missing.jsonl")


@pytest.mark.parametrize(
    "example",
    [
        TrainingExample("a", "\ud800", "x"),
        TrainingExample("a", "x", "y", chat_template_kwargs={"t": float("nan")}),
    ],
    ids=["lone surrogate", "not a number"],
)
def test_what_could_not_be_loaded_again_is_not_saved(
    tmp_path: Path, example: TrainingExample
) -> None:
    path = tmp_path / "examples.jsonl"
    save_examples([example_of()], path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="a"):
        save_examples([example_of(), example], path)
    assert path.read_bytes() == before
