"""`save_set`: rows of a ``map`` of one's own become the set that `prepare` leaves."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from pipeline import RowMap, load, load_lines, prepare, save_set
from pipeline.config import PrepareConfig
from pipeline.errors import UsageError
from pipeline.sets.load import verify
from tests.conftest import ROOT, talk, write_lines

pytestmark = pytest.mark.usefixtures("tokenizers_loaded_once")

TOKENIZER = str(ROOT / "configs" / "tokenizer")
LINES = ["file", "line", "text"]
PAIRS = [
    {
        "id": f"p{n}",
        "prompt": [{"role": "user", "content": f"{n}?"}],
        "chosen": [{"role": "assistant", "content": f"{n}!"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    for n in range(4)
]
TALKS = [talk(f"t{n}", f"{n}", "and more") for n in range(6)]


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Any]:
    """Return a function that saves rows as the set ``out`` without a report."""

    def save(rows: Any, to_rows: RowMap, **options: Any) -> Any:
        return save_set(rows, tmp_path / "out", to_rows, report=False, **options)

    return save


def map_lines(path: Path, to_rows: RowMap, cache: Path) -> datasets.Dataset:
    return load_lines(path, cache_dir=cache).map(to_rows, batched=True, remove_columns=LINES)


@pytest.mark.parametrize(
    "settings",
    [
        {"decisions": "all"},
        {"decisions": "all", "validation_fraction": 0.4},
        {"rejected_continuations": "keep", "validation_fraction": 0.4},
        {"columns": "train"},
    ],
    ids=str,
)
def test_one_plain_map_has_the_digest_of_prepare(
    settings: dict[str, Any],
    tmp_path: Path,
    save: Callable[..., Any],
    make_config: Callable[..., PrepareConfig],
) -> None:
    rows = PAIRS if "rejected_continuations" in settings else TALKS
    path = write_lines(tmp_path / "in.jsonl", rows)
    to_rows = RowMap(TOKENIZER, **settings)
    saved = save(map_lines(path, to_rows, tmp_path / "cache"), to_rows)
    made = prepare(make_config(path, **settings))
    assert saved.digest == made.digest
    for name in ("rows", "rows_by_split", "tokens", "by_flag", "points"):
        assert saved.counts[name] == made.counts[name]
    assert verify(saved.output) == []
    ours, theirs = (datasets.load_from_disk(str(each.output)) for each in (saved, made))
    assert list(ours) == list(theirs)
    assert all(ours[name].to_list() == theirs[name].to_list() for name in theirs)


def test_kept_rejects_stand_in_the_rejects_of_the_set(
    tmp_path: Path, save: Callable[..., Any], make_config: Callable[..., PrepareConfig]
) -> None:
    path = write_lines(tmp_path / "in.jsonl", [TALKS[0], "{torn", talk("bad", "<|im_start|>")])
    to_rows = RowMap(TOKENIZER, on_reject="keep")
    saved = save(map_lines(path, to_rows, tmp_path / "cache"), to_rows)
    made = prepare(make_config(path, max_reject_rate=1.0))
    assert saved.digest == made.digest
    for name in ("rejects.jsonl", "examples.sha256"):
        assert (saved.output / name).read_bytes() == (made.output / name).read_bytes()
    assert saved.counts["by_code"] == {"bad_json": 1, "control_tokens": 1}


def test_rows_that_were_saved_by_datasets_can_be_sealed_later(
    tmp_path: Path, save: Callable[..., Any], make_config: Callable[..., PrepareConfig]
) -> None:
    path = write_lines(tmp_path / "in.jsonl", TALKS)
    to_rows = RowMap(TOKENIZER)
    rows = to_rows.map(datasets.Dataset.from_list(TALKS))
    rows.save_to_disk(str(tmp_path / "plain"))
    saved = save(datasets.load_from_disk(str(tmp_path / "plain")), to_rows)
    assert saved.digest == save_digest_of(rows)
    assert len(load(saved.output, tokenizer=TOKENIZER)["train"]) == len(TALKS)
    assert prepare(make_config(path)).counts["tokens"] == saved.counts["tokens"]


def save_digest_of(rows: datasets.Dataset) -> str:
    from pipeline.rows.table import digest_rows, sum_digests

    table = rows.with_format("arrow")[:]
    return sum_digests(digest_rows(table, ["train"] * len(rows)))


def test_the_splits_of_a_dict_stay(save: Callable[..., Any]) -> None:
    to_rows = RowMap(TOKENIZER)
    rows = to_rows.map(datasets.Dataset.from_list(TALKS))
    both = datasets.DatasetDict({"train": rows.select(range(4)), "validation": rows.select([4, 5])})
    saved = save(both, to_rows)
    assert saved.counts["rows_by_split"] == {"train": 4, "validation": 2}
    assert verify(saved.output) == []


def test_a_chosen_part_of_rows_is_saved_in_its_order(save: Callable[..., Any]) -> None:
    to_rows = RowMap(TOKENIZER)
    rows = to_rows.map(datasets.Dataset.from_list(TALKS)).select([5, 1, 2])
    saved = save(rows, to_rows)
    assert datasets.load_from_disk(str(saved.output))["train"]["id"][:] == ["t5", "t1", "t2"]
    again = save(rows.select([0]), to_rows, overwrite=True)
    assert (again.rows_before, again.counts["rows"]) == (3, 1)


# ---- refusals


def test_what_is_there_is_replaced_only_when_asked(
    save: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("x")
    to_rows = RowMap(TOKENIZER)
    rows = to_rows.map(datasets.Dataset.from_list(TALKS[:1]))
    with pytest.raises(UsageError, match="output"):
        save(rows, to_rows)
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_foreign_columns_and_splits_are_refused(save: Callable[..., Any], tmp_path: Path) -> None:
    to_rows = RowMap(TOKENIZER)
    with pytest.raises(UsageError, match="save_set: no column input_ids, "):
        save(datasets.Dataset.from_list(TALKS), to_rows)
    rows = to_rows.map(datasets.Dataset.from_list(TALKS[:1]))
    with pytest.raises(UsageError, match="a split 'test'; expected train, validation, rejected"):
        save(datasets.DatasetDict({"test": rows}), to_rows)
    assert not (tmp_path / "out").exists()


def test_two_examples_of_one_id_are_refused_or_settled_by_the_settings(
    save: Callable[..., Any], tmp_path: Path
) -> None:
    doubled = [talk("a", "one"), talk("b", "two"), talk("a", "three")]
    to_rows = RowMap(TOKENIZER)
    with pytest.raises(UsageError, match=re.escape("(id 'a'): id: ")):
        save(to_rows.map(datasets.Dataset.from_list(doubled)), to_rows)
    assert not (tmp_path / "out").exists()
    to_rows = RowMap(TOKENIZER, on_duplicate="last")
    saved = save(to_rows.map(datasets.Dataset.from_list(doubled)), to_rows)
    assert datasets.load_from_disk(str(saved.output))["train"]["id"][:] == ["b", "a"]


# ---- the face, as it is shown


def test_the_face_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces of the Python face give one set."""
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "logs.jsonl", TALKS)
    to_rows = RowMap(TOKENIZER, max_len=8192, decisions="all")
    rows = to_rows.map(
        datasets.load_dataset("json", data_files="logs.jsonl", split="train"), num_proc=2
    )
    by_lines = load_lines("logs*.jsonl").map(
        to_rows, batched=True, remove_columns=["file", "line", "text"]
    )
    assert by_lines.remove_columns("source").to_list() == rows.remove_columns("source").to_list()
    save_set(by_lines, "out/set", to_rows, report=False)
    made = prepare(
        input="logs*.jsonl", tokenizer=TOKENIZER, output="out/made", decisions="all", report=False
    )
    assert load("out/set", tokenizer=TOKENIZER)["train"].to_list() == (
        load(made.output, tokenizer=TOKENIZER)["train"].to_list()
    )
