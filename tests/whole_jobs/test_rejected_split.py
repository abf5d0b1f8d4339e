"""The worse continuations of pairs are in a split of their own, and nothing trains them unasked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from pipeline import (
    ContextFrozenCollator,
    ContextGroupSampler,
    ConversationSampler,
    LengthBatchSampler,
    load,
    rows_as_id_pairs,
)
from pipeline.config import PrepareConfig
from pipeline.errors import BadRow, UsageError
from pipeline.job.prepare import prepare
from pipeline.rows import seal as seal_module
from pipeline.rows.line_mapper import LineMapper
from pipeline.rows.table import digest_rows, sum_digests
from pipeline.sets.diff import compare_sets
from pipeline.sets.hub.pull import PullChoice, pull_set
from pipeline.sets.hub.push import push_set
from pipeline.sets.hub.push_rules import PushChoice
from pipeline.sets.load import verify
from tests.conftest import talk, write_lines
from tests.hub_server import hub_of_this_process

ConfigMaker = Callable[..., PrepareConfig]
QUESTION = {"role": "user", "content": "2+2?"}


def pair(id_: str, better: str = "4", worse: str = "5", **values: Any) -> dict[str, Any]:
    return {"id": id_, "context": [QUESTION], "chosen": better, "rejected": worse, **values}


PAIRS = [pair(f"p{at}", worse="5" * (1 + at % 3)) for at in range(12)]


@pytest.fixture
def config(tmp_path: Path, make_config: ConfigMaker) -> PrepareConfig:
    lines = write_lines(tmp_path / "in.jsonl", [*PAIRS, talk("plain", "yes")])
    return make_config(lines, rejected_continuations="keep", validation_fraction=0.3)


def open_set(path: str | Path) -> dict[str, list[dict[str, Any]]]:
    return {str(name): rows.to_list() for name, rows in datasets.load_from_disk(str(path)).items()}


def make_old_set(config: PrepareConfig, format_: int) -> PrepareConfig:
    """Make a set with the worse continuations among the others, as before seal format 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seal_module, "SEAL_FORMAT", format_)
        patch.setattr(LineMapper, "name_splits", lambda self, drafts: ["train"] * len(drafts))
        prepare(config)
    return config


def test_what_is_trained_has_no_worse_continuation_and_each_has_its_better_one(
    config: PrepareConfig,
) -> None:
    prepared = prepare(config)
    splits = open_set(prepared.output)
    assert list(splits) == ["train", "validation", "rejected"]
    trained = [*splits["train"], *splits["validation"]]
    assert {row["preference"] for row in trained} == {"", "chosen"}
    assert {row["preference"] for row in splits["rejected"]} == {"rejected"}
    places = [
        {(row["id"], row["decision_idx"]): row["context_hash"] for row in rows}
        for rows in (splits["rejected"], [row for row in trained if row["preference"]])
    ]
    assert places[0] == places[1]
    assert len(places[0]) == len(PAIRS)
    assert prepared.counts["rows_by_split"] == {name: len(rows) for name, rows in splits.items()}
    assert verify(prepared.output) == []
    difference = compare_sets(str(prepared.output), str(prepared.output))
    assert not difference.rows.changed_by


def test_the_digest_covers_the_split(config: PrepareConfig) -> None:
    prepared = prepare(config)
    digests = [
        digest
        for name, rows in datasets.load_from_disk(str(prepared.output)).items()
        for digest in digest_rows(rows.data.table, [str(name)] * len(rows))
    ]
    assert prepared.digest == sum_digests(digests)


def test_without_being_kept_they_are_nowhere(config: PrepareConfig) -> None:
    prepared = prepare(dataclasses.replace(config, rejected_continuations="drop"))
    assert set(open_set(prepared.output)) == {"train", "validation"}
    assert prepared.counts["rows"] == len(PAIRS) + 1


def test_load_dataset_opens_every_split_of_the_folder(
    config: PrepareConfig, tmp_path: Path
) -> None:
    output = prepare(config).output
    copied = datasets.load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    assert {name: rows.to_list() for name, rows in copied.items()} == open_set(output)


def test_a_worse_continuation_whose_better_one_is_refused_is_refused_too(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    lines = write_lines(tmp_path / "in.jsonl", [pair("a", better="4 " * 900), pair("b")])
    settings = {"max_len": 200, "rejected_continuations": "keep", "max_reject_rate": 0.5}
    prepared = prepare(make_config(lines, **settings))
    splits = open_set(prepared.output)
    assert [[row["id"] for row in rows] for rows in splits.values()] == [["b"], ["b"]]
    assert prepared.counts["by_code"] == {"continuation_too_long": 2}
    said = (prepared.output / "rejects.jsonl").read_text("utf-8").splitlines()
    assert "the better continuation of its pair is rejected: " in json.loads(said[1])["reason"]


def test_appended_pairs_are_set_apart_as_in_one_run(config: PrepareConfig, tmp_path: Path) -> None:
    whole = prepare(dataclasses.replace(config, output=str(tmp_path / "whole")))
    first = write_lines(tmp_path / "first.jsonl", PAIRS[:5])
    rest = write_lines(tmp_path / "rest.jsonl", [*PAIRS[5:], talk("plain", "yes")])
    prepare(dataclasses.replace(config, input=(str(first),)))
    both = prepare(dataclasses.replace(config, input=(str(rest),), append=True))
    assert both.digest == whole.digest
    assert both.counts["rows_by_split"] == whole.counts["rows_by_split"]


@pytest.mark.parametrize("public", [False, True])
def test_a_pushed_and_pulled_set_keeps_them_apart(
    config: PrepareConfig, tmp_path: Path, public: bool
) -> None:
    output = prepare(config).output
    with hub_of_this_process(tmp_path / "cache") as hub:
        push_set(str(output), "team/pairs", PushChoice(public=public))
        assert any("data/rejected-00000-of" in name for name in hub.repos["team/pairs"].files)
        pulled = pull_set("team/pairs", str(tmp_path / "pulled"), PullChoice()).output
    columns = ["id", "input_ids", "preference", "decision_idx"]
    left, right = (
        {name: rows.select_columns(columns).to_list() for name, rows in each.items()}
        for each in (datasets.load_from_disk(str(output)), datasets.load_from_disk(str(pulled)))
    )
    assert left == right
    assert verify(pulled) == []
    assert "**It is not to be trained on**" in (pulled / "README.md").read_text("utf-8")


# --- nothing trains them unasked ---


@pytest.mark.parametrize("columns", ["full", "train"])
def test_load_hands_them_out_only_when_asked(config: PrepareConfig, columns: Any) -> None:
    output = prepare(dataclasses.replace(config, columns=columns)).output
    assert set(load(output)) == {"train", "validation"}
    worse = load(output, with_rejected=True)["rejected"]
    assert len(worse) == len(PAIRS)
    with pytest.raises(BadRow, match="preference is rejected, the worse continuation of a pair"):
        ContextFrozenCollator("split")(worse.with_format("arrow")[:2])
    with pytest.raises(BadRow, match="preference is rejected"):
        next(iter(rows_as_id_pairs(worse)))
    assert ContextFrozenCollator("split", with_rejected=True)(worse[:2])


@pytest.mark.parametrize("sampler", [LengthBatchSampler, ContextGroupSampler, ConversationSampler])
def test_a_sampler_of_them_is_refused_unless_it_is_asked_for(
    config: PrepareConfig, sampler: Any
) -> None:
    prepare(config)
    everything = datasets.concatenate_datasets(
        list(datasets.load_from_disk(config.output).values())  # type: ignore[arg-type]
    )
    with pytest.raises(UsageError, match="12 rows, the first at 13, have the preference rejected"):
        sampler(everything)
    assert sum(map(len, sampler(everything, with_rejected=True))) == len(everything)


def test_those_of_a_set_made_before_they_were_apart_are_not_handed_out_either(
    config: PrepareConfig,
) -> None:
    old = make_old_set(config, 1)
    assert verify(old.output) == []
    assert len(open_set(old.output)["train"]) == 2 * len(PAIRS) + 1
    splits = load(old.output)
    assert list(splits) == ["train"]
    assert set(splits["train"]["preference"]) == {"", "chosen"}
    assert [row["id"] for row in splits["train"]] == [*(each["id"] for each in PAIRS), "plain"]
    both = load(old.output, with_rejected=True, exclude_ids={"p0"})
    assert {name: len(rows) for name, rows in both.items()} == {"train": 12, "rejected": 11}


def test_a_worse_continuation_among_the_trained_is_damage(config: PrepareConfig) -> None:
    broken = make_old_set(config, 2)
    (finding,) = verify(broken.output)
    assert finding.startswith("train: row 1: the worse continuation of a pair belongs in the split")


# --- a split without a row is not saved ---


@pytest.mark.parametrize("conversation", ["c0", "c1", "c2", "c3"])
def test_two_rows_of_one_conversation_are_one_split_that_opens(
    tmp_path: Path, make_config: ConfigMaker, conversation: str
) -> None:
    rows = [{**talk(id_, "yes"), "conversation": conversation} for id_ in "ab"]
    lines = write_lines(tmp_path / "in.jsonl", rows)
    prepared = prepare(make_config(lines, validation_fraction=0.5))
    ((name, number),) = prepared.counts["rows_by_split"].items()
    assert number == 2
    assert {path.name for path in prepared.output.iterdir() if path.is_dir()} == {name}
    copied = datasets.load_dataset(str(prepared.output), cache_dir=str(tmp_path / "cache"))
    assert {split: each.to_list() for split, each in copied.items()} == open_set(prepared.output)
    assert verify(prepared.output) == []
    assert f'["{name}"]' in (prepared.output / "README.md").read_text("utf-8")


def test_a_set_without_any_row_has_an_empty_train_that_says_its_columns(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    lines = write_lines(tmp_path / "in.jsonl", ["no example"])
    settings = {"max_reject_rate": 1.0, "rejected_continuations": "keep"}
    prepared = prepare(make_config(lines, **settings, validation_fraction=0.5))
    assert prepared.counts["rows_by_split"] == {"train": 0}
    assert open_set(prepared.output) == {"train": []}
    assert verify(prepared.output) == []
