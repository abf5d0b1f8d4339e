"""Shards taken together are one set, whatever the input was cut into."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import PrepareConfig
from pipeline.errors import DataRefused
from pipeline.job.merge import MergedShards, judge_rejects
from pipeline.job.prepare import Prepared, prepare
from pipeline.job.shard_record import ShardRecord
from pipeline.lines.text import PieceRecord
from pipeline.sets.arrow_file import WrittenFile
from pipeline.sets.counts import RowCounts
from pipeline.sets.load import verify
from pipeline.sets.place import MANIFEST
from pipeline.sets.rejects_file import RejectsFile
from tests.conftest import ROOT, shards_of, talk, write_lines

BESIDE = ("rejects.jsonl", "examples.sha256")


LINES = st.one_of(
    st.sampled_from(["", "{torn", "[]"]),
    st.builds(talk, st.sampled_from("abcde"), st.sampled_from(["one", "<|im_start|>"])),
    st.builds(talk, st.sampled_from("fghij"), st.sampled_from("12"), st.sampled_from(["", "yes"])),
)


@given(
    lines=st.lists(LINES, min_size=1, max_size=14),
    on_duplicate=st.sampled_from(["first", "last", "error"]),
    size=st.integers(1, 800),
    batch_size=st.integers(1, 5),
)
@settings(max_examples=15)
def test_the_set_is_the_same_however_the_input_is_cut(
    lines: list[Any], on_duplicate: Any, size: int, batch_size: int
) -> None:
    lines = [talk("always", "there"), *lines]
    with TemporaryDirectory() as place:
        folder = Path(place)
        base = PrepareConfig(
            input=(str(write_lines(folder / "in.jsonl", lines)),),
            tokenizer=str(ROOT / "configs" / "tokenizer"),
            output=str(folder / "whole"),
            num_proc=1,
            report=False,
            decisions="all",
            validation_fraction=0.4,
            on_duplicate=on_duplicate,
            max_reject_rate=1.0,
        )
        whole = prepare(base)
        with shards_of(size):
            cut = prepare(
                dataclasses.replace(base, output=str(folder / "cut"), batch_size=batch_size)
            )
        assert cut.digest == whole.digest
        assert cut.counts == whole.counts
        assert cut.manifest["seal"]["key"] == whole.manifest["seal"]["key"]
        assert cut.manifest["shards"]["made"] >= whole.manifest["shards"]["made"] == 1
        for name in BESIDE:
            assert (cut.output / name).read_bytes() == (whole.output / name).read_bytes()
        assert rows_of(cut) == rows_of(whole)
        assert verify(cut.output) == verify(whole.output) == []
        counts = cut.counts
        assert counts["lines"] == sum(line != "" for line in lines)
        assert counts["points"] == counts["rows"] + counts["rejects"]


def rows_of(prepared: Prepared) -> dict[str, list[dict[str, Any]]]:
    splits = datasets.load_from_disk(str(prepared.output))
    return {str(name): rows.to_list() for name, rows in splits.items()}


def test_rows_of_several_files_and_shards_keep_the_order_of_the_input(
    tmp_path: Path, make_config: Callable[..., PrepareConfig]
) -> None:
    for name in "ba":
        write_lines(tmp_path / f"{name}.jsonl", [talk(f"{name}{n}", "yes") for n in range(20)])
    with shards_of(300):
        prepared = prepare(make_config([tmp_path / "b.jsonl", tmp_path / "a.jsonl"]))
    ids = [row["id"] for row in rows_of(prepared)["train"]]
    assert ids == [f"{name}{number}" for name in "ab" for number in range(20)]
    assert prepared.manifest["shards"]["made"] > 5
    assert (
        len(list((prepared.output / "train").glob("*.arrow")))
        == prepared.manifest["shards"]["made"]
    )


def test_the_manifest_seals_every_file_with_what_is_on_disk(
    tmp_path: Path, make_config: Callable[..., PrepareConfig]
) -> None:
    lines = write_lines(tmp_path / "in.jsonl", [talk(f"e{n}", "yes") for n in range(20)])
    with shards_of(300):
        prepared = prepare(make_config(lines, validation_fraction=0.5))
    on_disk = {
        path.relative_to(prepared.output).as_posix(): path.stat().st_size
        for path in prepared.output.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    sealed = {name: entry["bytes"] for name, entry in prepared.manifest["files"].items()}
    assert sealed == on_disk
    assert list(sealed) == sorted(sealed)
    assert verify(prepared.output) == []


# ---- the verdict


def merged_of(folder: Path, codes: list[dict[str, int]], rows: int, faults: int) -> MergedShards:
    """Return shards with given rejects, each of one line and one file of them in ``folder``."""
    records: list[ShardRecord] = []
    for index, found in enumerate(codes):
        file = WrittenFile(f"{index}.jsonl", 0, "", 0)
        lines = [
            {"file": "in.jsonl", "line": index, "id": "é\u2028", "code": code, "reason": "why"}
            for code, number in found.items()
            for _ in range(number)
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / file.name).write_text(text, encoding="utf-8")
        pieces = (PieceRecord("in.jsonl", rows + sum(found.values()), 0),)
        counts = RowCounts(rows=rows)
        records.append(ShardRecord(index, pieces, {}, file, file, file, counts, found, ""))
    points = sum(each.lines for each in records)
    return MergedShards(folder, records, points, faults, points, None)


@pytest.mark.parametrize(
    ("rate", "faults", "is_refused"),
    [(0.0, 0, False), (0.0, 1, True), (0.25, 2, False), (0.25, 3, True), (1.0, 8, False)],
)
def test_faults_are_weighed_against_the_points(
    tmp_path: Path,
    make_config: Callable[..., PrepareConfig],
    rate: float,
    faults: int,
    is_refused: bool,
) -> None:
    merged = merged_of(tmp_path, [{}, {"bad_json": 2, "too_long": 1}, {"bad_json": 1}], 2, faults)
    assert merged.points == 10
    merged = dataclasses.replace(merged, points=8)
    config = make_config("in.jsonl", max_reject_rate=rate)
    rejects = tmp_path / "set.rejects.jsonl"
    kept = RejectsFile(rejects, tmp_path)
    if not is_refused:
        judge_rejects(config, merged, kept)
        assert not rejects.exists()
        return
    with pytest.raises(DataRefused) as caught:
        judge_rejects(config, merged, kept)
    said = str(caught.value)
    assert "4 of 8 decision points in 10 lines were rejected (bad_json 3, too_long 1)" in said
    assert "First: in.jsonl:1 (id 'é\\u2028'): bad_json: why. All are in " in said
    lines = rejects.read_text("utf-8").split("\n")[:-1]
    assert Counter(json.loads(line)["code"] for line in lines) == {"bad_json": 3, "too_long": 1}


def test_shards_without_rows_and_rejects_are_nothing_new(tmp_path: Path) -> None:
    assert merged_of(tmp_path, [{}, {}], 0, 0).is_empty
    assert not merged_of(tmp_path, [{}, {}], 1, 0).is_empty
    assert not merged_of(tmp_path, [{}, {"bad_json": 1}], 0, 0).is_empty
