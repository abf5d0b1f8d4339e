"""Decision points: which places of a conversation become rows, and that rows share what is shared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk
from hypothesis import given
from hypothesis import strategies as st

from pipeline import prepare
from pipeline.config import PrepareConfig, config_from_mapping
from pipeline.errors import Rejected
from pipeline.examples.decisions import DecisionPoint, assign_split, find_decision_points
from pipeline.examples.example import TrainingExample
from pipeline.prompt.request import SharedWork
from pipeline.rows.builder import RowBuilder
from pipeline.rows.table import BoundedRow
from tests.conftest import ROOT, write_lines

ConfigMaker = Callable[..., PrepareConfig]
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Which door?"},
    {"role": "assistant", "content": "Left."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Right."},
    {"role": "assistant", "content": "No, left."},
    {"role": "user", "content": "Thanks."},
]


def example(**values: Any) -> TrainingExample:
    return TrainingExample.from_dict({"id": "a", "messages": TALK, **values})


def places(points: list[DecisionPoint]) -> list[tuple[int | None, Any]]:
    return [
        (
            point.decision_idx,
            point.continuation
            if isinstance(point.continuation, str)
            else point.continuation["content"],
        )
        for point in points
    ]


# ---- which places


def test_given_is_the_last_assistant_message_where_the_example_says_nothing() -> None:
    assert places(find_decision_points(example())) == [(5, "No, left.")]


def test_given_is_where_the_example_says() -> None:
    points = find_decision_points(example(decision_idx=2, continuation="Right."))
    assert places(points) == [(2, "Right.")]


def test_all_is_each_assistant_message_with_its_own_text() -> None:
    points = find_decision_points(example(), "all")
    assert places(points) == [(2, "Left."), (4, "Right."), (5, "No, left.")]


def test_all_takes_what_the_example_says_for_its_place() -> None:
    points = find_decision_points(example(decision_idx=4, continuation="Left."), "all")
    assert places(points) == [(2, "Left."), (4, "Left."), (5, "No, left.")]


def test_a_continuation_after_the_log_is_the_last_point() -> None:
    after = example(decision_idx=7, continuation="Welcome.")
    assert places(find_decision_points(after, "all"))[-1] == (7, "Welcome.")
    assert places(find_decision_points(after, "last")) == [(7, "Welcome.")]


def test_last_is_the_last_assistant_message_whatever_place_was_given() -> None:
    early = example(decision_idx=2, continuation="Right.")
    assert places(find_decision_points(early, "last")) == [(5, "No, left.")]
    late = example(decision_idx=5, continuation="Left!")
    assert places(find_decision_points(late, "last")) == [(5, "Left!")]


def weighted(*weights: int | None) -> list[dict[str, Any]]:
    """Return the talk with a weight for each assistant message."""
    said, left = [], list(weights)
    for message in TALK:
        weight = left.pop(0) if message["role"] == "assistant" else None
        said.append(message if weight is None else {**message, "weight": weight})
    return said


@pytest.mark.parametrize(
    ("weights", "expected", "last"),
    [
        ((0, 1, None), [4, 5], 5),
        ((1, 1, 0), [2, 4], 4),
        ((None, 0, 0), [2], 2),
    ],
)
def test_a_message_of_weight_0_is_no_point(
    weights: tuple[int | None, ...], expected: list[int], last: int
) -> None:
    said = example(messages=weighted(*weights))
    assert [place for place, _ in places(find_decision_points(said, "all"))] == expected
    assert [place for place, _ in places(find_decision_points(said, "last"))] == [last]
    assert [place for place, _ in places(find_decision_points(said))] == [last]


def test_a_conversation_of_nothing_but_weight_0_has_no_point() -> None:
    with pytest.raises(Rejected, match="weight other than 0") as caught:
        example(messages=weighted(0, 0, 0))
    assert caught.value.code == "missing_field"


def test_a_greeting_that_nothing_precedes_is_no_point() -> None:
    talk = [{"role": "assistant", "content": "Hello."}, *TALK[1:3]]
    assert places(find_decision_points(example(messages=talk), "all")) == [(2, "Left.")]


@pytest.mark.parametrize("decisions", ["given", "all", "last"])
def test_a_context_given_as_text_has_one_point(decisions: Any) -> None:
    raw = TrainingExample("a", "2+2=", "4")
    assert places(find_decision_points(raw, decisions)) == [(None, "4")]


def test_several_continuations_are_several_points_of_one_place() -> None:
    points = find_decision_points(example(decision_idx=4, continuations=["x", "y"]), "all")
    assert places(points) == [(2, "Left."), (4, "x"), (4, "y"), (5, "No, left.")]


@pytest.mark.parametrize("keep", [False, True])
def test_the_worse_one_of_a_pair_is_a_point_only_where_it_is_kept(keep: bool) -> None:
    pair = example(decision_idx=2, chosen="Left.", rejected="Right.")
    points = find_decision_points(pair, "given", keep_rejected=keep)
    expected = [("Left.", "chosen"), ("Right.", "rejected")][: 1 + keep]
    assert [(point.continuation, point.preference) for point in points] == expected


@given(st.text("ua", min_size=1, max_size=12).filter(lambda roles: "a" in roles[1:]))
def test_all_points_are_the_assistants_messages_in_order(roles: str) -> None:
    names = {"u": "user", "a": "assistant"}
    talk = [{"role": names[role], "content": str(at)} for at, role in enumerate(roles)]
    points = find_decision_points(example(messages=talk), "all")
    expected = [(at, str(at)) for at, role in enumerate(roles) if role == "a" and at > 0]
    assert places(points) == expected
    assert places(find_decision_points(example(messages=talk), "last")) == expected[-1:]


# ---- splits


@pytest.mark.parametrize(
    ("conversation", "share"),
    [("a", 0.791374), ("conversation-7", 0.94192), ("", 0.889416), ("你好", 0.402551)],
)
def test_the_split_is_the_same_on_every_machine(conversation: str, share: float) -> None:
    assert assign_split(conversation, share - 1e-5) == "train"
    assert assign_split(conversation, share + 1e-5) == "validation"


def test_about_the_share_asked_for_is_for_validation_and_none_without_one() -> None:
    names = [f"conversation-{number}" for number in range(4000)]
    chosen = [assign_split(name, 0.1) for name in names].count("validation")
    assert 340 < chosen < 460
    assert {assign_split(name, 0.0) for name in names} == {"train"}


def test_a_larger_share_keeps_what_a_smaller_one_took() -> None:
    names = [f"conversation-{number}" for number in range(500)]
    small, large = ({n for n in names if assign_split(n, f) == "validation"} for f in (0.1, 0.3))
    assert small < large


def test_rows_of_one_conversation_are_never_in_both_splits(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    # Two examples of a conversation, each with three points.
    lines = [
        {"id": f"{number}-{half}", "conversation": f"c{number}", "messages": TALK}
        for number in range(30)
        for half in "ab"
    ]
    config = make_config(
        write_lines(tmp_path / "e.jsonl", lines),
        decisions="all",
        validation_fraction=0.4,
        batch_size=7,
    )
    splits = load_from_disk(str(prepare(config).output))
    sides = {name: set(rows["conversation"]) for name, rows in splits.items()}
    assert sides["train"]
    assert sides["validation"]
    assert not sides["train"] & sides["validation"]
    assert sum(len(rows) for rows in splits.values()) == 180
    assert {len(rows) % 6 for rows in splits.values()} == {0}


# ---- one context, once


@pytest.fixture
def builder() -> RowBuilder:
    values = {"input": "-", "output": "-", "tokenizer": str(ROOT / "configs" / "tokenizer")}
    return RowBuilder(config_from_mapping(values, "test"))


def test_a_context_that_points_share_is_rendered_and_encoded_once(builder: RowBuilder) -> None:
    rendered, encoded = list[int | None](), list[str]()
    contexts, encoder = copy.copy(builder.contexts), copy.copy(builder.encoder)
    counting = copy.copy(builder)

    def render(point: DecisionPoint, shared: SharedWork) -> Any:
        rendered.append(point.decision_idx)
        return builder.contexts.render(point, shared)

    def encode(texts: list[str]) -> Any:
        encoded.extend(texts)
        return builder.encoder.encode(texts)

    vars(encoder).update(encode=encode)
    vars(contexts).update(render=render, _encoder=encoder)
    vars(counting).update(contexts=contexts)
    pair = example(decision_idx=4, continuations=["x", "y", "z"])
    rows = counting.build(find_decision_points(pair, "all"))
    assert rendered == [2, 4, 5]
    assert len(encoded) == len(set(encoded)) == 3
    assert all(isinstance(row, BoundedRow) for row in rows)
    hashes = [row.context_hash for row in rows if isinstance(row, BoundedRow)]
    assert hashes[1] == hashes[2] == hashes[3]
    assert len(set(hashes)) == 3


def test_points_together_give_the_rows_that_they_give_alone(builder: RowBuilder) -> None:
    points = find_decision_points(example(decision_idx=4, continuations=["x", "y"]), "all")
    together = builder.build(points)
    for point, row in zip(points, together, strict=True):
        (alone,) = builder.build([point])
        assert isinstance(row, BoundedRow)
        assert isinstance(alone, BoundedRow)
        assert alone.input_ids.tolist() == row.input_ids.tolist()
        assert alone.context_len == row.context_len


def test_a_refused_point_does_not_take_the_others_of_its_context_along(
    builder: RowBuilder,
) -> None:
    points = find_decision_points(example(decision_idx=4, continuations=["x", "<|im_start|>", "z"]))
    first, second, third = builder.build(points)
    assert isinstance(second, Rejected)
    assert isinstance(first, BoundedRow)
    assert isinstance(third, BoundedRow)


def test_saved_rows_name_their_place_and_preference(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    line = {
        "id": "a",
        "conversation": "c",
        "messages": TALK,
        "decision_idx": 2,
        "chosen": "Left.",
        "rejected": "Right.",
    }
    config = make_config(
        write_lines(tmp_path / "e.jsonl", [line]), decisions="all", rejected_continuations="keep"
    )
    prepared = prepare(config)
    splits = load_from_disk(str(prepared.output))
    rows, (worse,) = splits["train"], splits["rejected"]
    assert rows["decision_idx"] == [2, 4, 5]
    assert rows["preference"] == ["chosen", "", ""]
    assert set(rows["conversation"]) == {"c"}
    assert (worse["id"], worse["decision_idx"], worse["preference"]) == ("a", 2, "rejected")
    assert rows[0]["context_hash"] == worse["context_hash"] != rows[1]["context_hash"]
    counts = prepared.counts
    assert (counts["lines"], counts["points"], counts["rows"]) == (1, 4, 4)


def test_a_rejected_point_is_counted_and_says_where(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    broken = [*TALK[:2], {"role": "assistant", "content": ""}, *TALK[3:]]
    lines = write_lines(tmp_path / "e.jsonl", [{"id": "a", "messages": broken}])
    # One of three points: a share of the points, whatever the number of lines.
    counts = prepare(make_config(lines, decisions="all", max_reject_rate=0.34)).counts
    assert (counts["lines"], counts["points"], counts["rows"]) == (1, 3, 2)
    assert counts["by_code"] == {"empty_continuation": 1}
    assert "at message 2" in (tmp_path / "set" / "rejects.jsonl").read_text("utf-8")
