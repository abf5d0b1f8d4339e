"""Shards taken together are one set, whatever the input was cut into; who stands twice is left out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import PrepareConfig, RowSettings
from pipeline.errors import DataRefused
from pipeline.job.assemble import Assembly, assemble
from pipeline.job.build import judge_rejects
from pipeline.job.prepare import prepare
from pipeline.job.prepared import Prepared
from pipeline.rows.row_map import VERDICT_SCHEMA
from pipeline.rows.table import sum_digests
from pipeline.sets.load import verify
from pipeline.sets.place import MANIFEST
from pipeline.sets.rejects_file import RejectsFile
from pipeline.types import ROW_SCHEMA
from tests.conftest import ROOT, shards_of, talk, write_lines

pytestmark = pytest.mark.usefixtures("tokenizers_loaded_once")

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
@settings(max_examples=8)
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


# ---- what stands twice

MEMORY = [
    {"id": "a", "split": "train", "content": "1"},
    {"id": "b", "split": "train", "content": "1"},
    {"id": "", "code": "bad_json"},
    {"id": "a", "split": "train", "content": "2"},
    {"id": "c", "split": "validation", "content": "1"},
    {"id": "b", "split": "train", "content": "1"},
]


def mapped_of(rows: Sequence[Mapping[str, Any]]) -> datasets.Dataset:
    """Return what a map makes of lines: each a row of given id, split and content, or a reject."""
    made: list[dict[str, Any]] = []
    for number, row in enumerate(rows, 1):
        digest = hashlib.sha256(row.get("content", "").encode()).digest()
        values: dict[str, Any] = dict.fromkeys([*ROW_SCHEMA.names, *VERDICT_SCHEMA.names])
        values |= {"id": row["id"], "source": row.get("source", f"in.jsonl:{number}")}
        if "code" in row:
            values |= {"code": row["code"], "reject_reason": "why", "excerpt": ""}
        else:
            values |= {
                "input_ids": [1, 2, number],
                "labels": [-100, 2, number],
                "attention_mask": [1, 1, 1],
                "context_len": 1,
                "total_len": 3,
                "context_hash": "0",
                "dropped_tokens": 0,
                "dropped_messages": 0,
                "flags": row.get("flags", []),
                "split": row["split"],
                "line_sha256": digest,
                "row_sha256": hashlib.sha256(f"{number}".encode()).digest(),
            }
        made.append(values)
    schema = pa.schema([*ROW_SCHEMA, *VERDICT_SCHEMA])
    return datasets.Dataset(pa.Table.from_pylist(made, schema=schema))


def ids_of(assembly: Assembly) -> dict[str, list[str]]:
    return {str(name): rows["id"][:] for name, rows in assembly.splits.items()}


@pytest.mark.parametrize(
    ("on_duplicate", "ids", "lines", "faults"),
    [
        ("first", {"train": ["a", "b"], "validation": ["c"]}, [3, 4, 6], 1),
        ("last", {"train": ["b", "a"], "validation": ["c"]}, [1, 3, 6], 1),
        ("error", {"train": ["a", "b"], "validation": ["c"]}, [3, 4, 6], 2),
    ],
)
def test_rows_that_are_left_out_are_rejects_in_their_place(
    on_duplicate: Any, ids: dict[str, list[str]], lines: list[int], faults: int
) -> None:
    assembly = assemble(mapped_of(MEMORY), RowSettings(tokenizer="t", on_duplicate=on_duplicate))
    assert ids_of(assembly) == ids
    assert [reject.line for reject in assembly.rejects] == lines
    assert (assembly.new, assembly.points, assembly.faults) == (3, 6, faults)
    assert assembly.counts.rows == 3
    assert assembly.counts.sums["total_len"] == 9
    kept = {line for line in range(1, 7) if line not in lines}
    digests = [hashlib.sha256(f"{line}".encode()).digest() for line in kept]
    assert assembly.digest == sum_digests(digests)
    assert [id_ for id_, _ in assembly.examples] == [
        MEMORY[line - 1]["id"] for line in sorted(kept)
    ]


def test_the_rows_of_one_line_are_one_example() -> None:
    rows = [{**row, "source": f"in.jsonl:{at // 2}"} for at, row in enumerate(MEMORY[:2] * 2)]
    rows = [{**row, "id": "a", "content": str(at // 2)} for at, row in enumerate(rows)]
    assembly = assemble(mapped_of(rows), RowSettings(tokenizer="t", on_duplicate="first"))
    assert ids_of(assembly) == {"train": ["a", "a"]}
    assert [reject.line for reject in assembly.rejects] == [1, 1]
    assert len(list(assembly.examples)) == 1


def test_rows_that_came_from_no_file_are_told_apart_by_their_place() -> None:
    rows = [{**row, "source": ""} for row in MEMORY]
    assembly = assemble(mapped_of(rows), RowSettings(tokenizer="t", on_duplicate="first"))
    assert ids_of(assembly) == {"train": ["a", "b"], "validation": ["c"]}
    assert Counter(reject.code for reject in assembly.rejects) == {
        "duplicate_id": 2,
        "bad_json": 1,
    }


def test_a_set_of_no_row_has_an_empty_split() -> None:
    assembly = assemble(mapped_of(MEMORY[2:3]), RowSettings(tokenizer="t"))
    assert ids_of(assembly) == {"train": []}
    assert not assembly.is_empty
    assert assemble(mapped_of([]), RowSettings(tokenizer="t")).is_empty


# ---- the verdict


@pytest.mark.parametrize(
    ("rate", "rejects", "is_refused"),
    [(0.0, 0, False), (0.0, 1, True), (0.25, 2, False), (0.25, 3, True), (1.0, 8, False)],
)
def test_faults_are_weighed_against_the_points(
    tmp_path: Path, rate: float, rejects: int, is_refused: bool
) -> None:
    good = [{"id": f"e{n}", "split": "train"} for n in range(8 - rejects)]
    bad = [{"id": "\u00e9\u2028", "code": "bad_json"} for _ in range(rejects)]
    assembly = assemble(mapped_of([*good, *bad]), RowSettings(tokenizer="t"))
    path = tmp_path / "set.rejects.jsonl"
    kept = RejectsFile(path, tmp_path)
    if not is_refused:
        judge_rejects(assembly, rate, 10, kept)
        assert not path.exists()
        return
    with pytest.raises(DataRefused) as caught:
        judge_rejects(assembly, rate, 10, kept)
    said = str(caught.value)
    assert f"{rejects} of 8 decision points in 10 lines were rejected (bad_json {rejects})" in said
    assert f"First: in.jsonl:{9 - rejects} (id 'é\\u2028'): bad_json: why. All are in " in said
    lines = path.read_text("utf-8").split("\n")[:-1]
    assert Counter(json.loads(line)["code"] for line in lines) == {"bad_json": rejects}
