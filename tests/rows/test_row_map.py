"""`RowMap`: the rows of one batched ``map``, whatever holds the examples."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets.fingerprint import Hasher

from pipeline import RowMap, load_lines
from pipeline.config import RowSettings
from pipeline.errors import DataRefused, SealMismatch, UsageError
from pipeline.rows.row_map import VERDICT_SCHEMA
from pipeline.types import NUMERIC_COLUMNS, row_features
from tests.conftest import ROOT, talk, write_lines

pytestmark = pytest.mark.usefixtures("tokenizers_loaded_once")

TOKENIZER = str(ROOT / "configs" / "tokenizer")
TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
}


def called(id_: str, arguments: Any) -> dict[str, Any]:
    """Return an example whose context has a call with given arguments."""
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": arguments}}
    return {
        "id": id_,
        "messages": [
            {"role": "user", "content": "Where?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "there"},
        ],
        "tools": [TOOL],
        "continuation": "There.",
    }


EXAMPLES: list[dict[str, Any]] = [
    called("a", {"where": "here"}),
    called("b", {"depth": 2}),
    {"id": "c", "messages": [{"role": "user", "content": "2+2="}], "continuation": "4"},
    {"id": "d", "messages": [{"role": "user", "content": "3+3="}], "continuation": "6"},
]
BAD = {"id": "bad", "messages": [{"role": "user", "content": "?"}], "continuation": ""}


@pytest.fixture(scope="module")
def to_rows() -> RowMap:
    made = RowMap(TOKENIZER)
    made.load()
    return made


@pytest.fixture(scope="module")
def lines_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("lines") / "in.jsonl", EXAMPLES)


@pytest.fixture(scope="module")
def examples() -> datasets.Dataset:
    """The examples in typed columns, in memory: structs with a null for each key they lack."""
    return datasets.Dataset.from_list(EXAMPLES)


def without_source(rows: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "source"} for row in rows]


@pytest.fixture(scope="module")
def expected(to_rows: RowMap, lines_file: Path) -> list[dict[str, Any]]:
    """The rows of the file, without their place in it."""
    lines = {
        "file": ["in.jsonl"] * len(EXAMPLES),
        "line": list(range(1, len(EXAMPLES) + 1)),
        "text": lines_file.read_text("utf-8").splitlines(),
    }
    return without_source(datasets.Dataset.from_dict(to_rows(lines)).to_list())


# ---- one set of rows, whatever holds the examples


def test_typed_columns_give_the_rows_of_the_file(
    to_rows: RowMap, examples: datasets.Dataset, expected: list[dict[str, Any]]
) -> None:
    rows = to_rows.map(examples)
    assert rows.features == to_rows.features == row_features("full")
    assert set(rows["source"]) == {""}
    assert without_source(rows) == expected


def test_lines_give_the_rows_of_the_file_with_their_places(
    to_rows: RowMap, lines_file: Path, tmp_path: Path, expected: list[dict[str, Any]]
) -> None:
    lines = load_lines(lines_file, cache_dir=tmp_path)
    plain = lines.map(to_rows, batched=True, remove_columns=["file", "line", "text"])
    assert plain["source"][:] == [f"in.jsonl:{line}" for line in range(1, 5)]
    assert without_source(plain) == expected
    assert to_rows.map(lines).to_list() == plain.to_list()


@pytest.mark.parametrize("number", [1, 2])
def test_memory_mapped_examples_on_any_number_of_processes_give_the_same_rows(
    to_rows: RowMap,
    examples: datasets.Dataset,
    tmp_path: Path,
    expected: list[dict[str, Any]],
    number: int,
) -> None:
    examples.save_to_disk(str(tmp_path / "saved"))
    mapped = datasets.load_from_disk(str(tmp_path / "saved"))
    assert without_source(to_rows.map(mapped, num_proc=number, batch_size=3)) == expected


@pytest.mark.parametrize(
    ("choose", "places"),
    [
        (lambda rows: rows.filter(lambda row: row["id"] != "b"), [0, 2, 3]),
        (lambda rows: rows.select([3, 0]), [3, 0]),
        (lambda rows: rows.shuffle(seed=5), None),
        (lambda rows: rows.with_format("numpy"), [0, 1, 2, 3]),
    ],
    ids=["filter", "select", "shuffle", "format"],
)
def test_chosen_examples_give_their_rows_in_their_order(
    to_rows: RowMap,
    examples: datasets.Dataset,
    expected: list[dict[str, Any]],
    choose: Callable[[datasets.Dataset], datasets.Dataset],
    places: list[int] | None,
) -> None:
    chosen = choose(examples)
    if places is None:
        places = ["abcd".index(id_) for id_ in chosen["id"]]
    assert without_source(to_rows.map(chosen)) == [expected[place] for place in places]


def test_each_split_of_a_dict_is_mapped(
    to_rows: RowMap, examples: datasets.Dataset, expected: list[dict[str, Any]]
) -> None:
    both = datasets.DatasetDict({"train": examples, "test": examples.select([2])})
    mapped = to_rows.map(both)
    assert type(mapped) is datasets.DatasetDict
    assert without_source(mapped["train"]) == expected
    assert without_source(mapped["test"]) == expected[2:3]


def test_streams_give_the_same_rows(
    to_rows: RowMap,
    examples: datasets.Dataset,
    lines_file: Path,
    tmp_path: Path,
    expected: list[dict[str, Any]],
) -> None:
    streams = [
        examples.to_iterable_dataset(),
        datasets.load_dataset(
            "json",
            data_files=str(lines_file),
            split="train",
            streaming=True,
            cache_dir=str(tmp_path),
        ),
    ]
    for stream in streams:
        assert without_source(to_rows.map(stream)) == expected


def test_a_batch_is_answered_in_its_kind(
    to_rows: RowMap, expected: list[dict[str, Any]], examples: datasets.Dataset
) -> None:
    table: pa.Table = examples.with_format("arrow")[:]
    assert without_source(to_rows(table).to_pylist()) == expected
    lists = {name: [row.get(name) for row in EXAMPLES] for name in EXAMPLES[0]}
    rows = to_rows(lists)
    assert type(rows) is dict
    assert rows["id"] == ["a", "b", "c", "d"]
    assert rows["input_ids"] == [row["input_ids"] for row in expected]
    arrays = {name: np.array(values, dtype=object) for name, values in lists.items()}
    assert to_rows(arrays) == rows


def test_arguments_may_be_text(to_rows: RowMap) -> None:
    texts = [called("a", json.dumps({"where": "here"})), called("b", json.dumps({"depth": 2}))]
    as_text = to_rows.map(datasets.Dataset.from_list(texts))
    as_structs = to_rows.map(datasets.Dataset.from_list(EXAMPLES[:2]))
    assert as_text["input_ids"][:] == as_structs["input_ids"][:]


def test_a_key_that_is_null_in_each_struct_is_absent(to_rows: RowMap) -> None:
    rows = [{**EXAMPLES[2], "reason": None, "weight": None}, EXAMPLES[3]]
    columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    made = to_rows(columns)
    assert made["reason"] == ["", ""]
    assert made["weight"] == [1.0, 1.0]


def test_examples_without_ids_are_named_by_their_content_in_any_holder(to_rows: RowMap) -> None:
    bare = [{"messages": talk("", answer)["messages"]} for answer in ("4", "6")]
    texts = [json.dumps(row, indent=None) for row in bare]
    lines = {"file": ["x", "y"], "line": [7, 8], "text": texts}
    typed = to_rows.map(datasets.Dataset.from_list(bare))
    assert typed["id"][:] == to_rows(lines)["id"]
    assert len(set(typed["id"])) == 2


def test_no_rows_come_of_no_examples(to_rows: RowMap, examples: datasets.Dataset) -> None:
    assert len(to_rows.map(examples.select([]))) == 0
    assert to_rows({"id": [], "context": [], "continuation": []})["id"] == []


# ---- rejects


def with_bad() -> datasets.Dataset:
    return datasets.Dataset.from_list([EXAMPLES[2], BAD, EXAMPLES[3]])


def test_a_reject_is_raised_with_what_to_do(to_rows: RowMap) -> None:
    with pytest.raises(DataRefused) as caught:
        to_rows(with_bad().with_format("arrow")[:])
    said = str(caught.value)
    assert "example (id 'bad'): empty_continuation: " in said
    assert 'mend it, or give on_reject="skip" or "keep"' in said


def test_a_reject_of_a_line_is_raised_with_its_place(to_rows: RowMap) -> None:
    with pytest.raises(DataRefused, match=r"^logs/a\.jsonl:3 \(id ''\): bad_json: "):
        to_rows({"file": ["logs/a.jsonl"], "line": [3], "text": ["{torn"]})


def test_rejects_that_are_skipped_are_counted_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    skipping = RowMap(TOKENIZER, on_reject="skip")
    with caplog.at_level(logging.WARNING):
        rows = skipping.map(with_bad())
    assert rows["id"][:] == ["c", "d"]
    assert rows.features == row_features("full")
    assert "left out: empty_continuation 1; the first: example (id 'bad')" in caplog.text


def test_rejects_that_are_kept_stand_in_their_place() -> None:
    keeping = RowMap(TOKENIZER, on_reject="keep")
    rows = keeping.map(with_bad())
    assert rows.features == keeping.features
    assert rows.column_names == [*row_features(), *VERDICT_SCHEMA.names]
    assert rows["id"][:] == ["c", "bad", "d"]
    assert rows["code"][:] == [None, "empty_continuation", None]
    assert rows[1]["reject_reason"]
    assert rows[1]["input_ids"] is None


@pytest.mark.parametrize("columns", ["full", "train"])
def test_the_columns_are_those_of_the_settings(columns: Any) -> None:
    made = RowMap(TOKENIZER, columns=columns)
    rows = made.map(datasets.Dataset.from_list(EXAMPLES[2:]))
    assert rows.features == made.features == row_features(columns)
    assert (columns == "train") == (rows.column_names == list(NUMERIC_COLUMNS))


# ---- what it is known by


def test_a_second_run_comes_from_the_cache_and_other_settings_do_not(
    examples: datasets.Dataset, tmp_path: Path
) -> None:
    examples.save_to_disk(str(tmp_path / "saved"))

    def files() -> list[str]:
        return sorted(path.name for path in (tmp_path / "saved").glob("cache-*.arrow"))

    def run(**settings: Any) -> datasets.Dataset:
        data = datasets.load_from_disk(str(tmp_path / "saved"))
        return RowMap(TOKENIZER, **settings).map(data)

    first = run()
    made = files()
    assert len(made) == 1
    assert run().to_list() == first.to_list()
    assert files() == made
    run(max_len=300)
    assert len(files()) == 2


def test_it_pickles_small_and_comes_back_the_same(to_rows: RowMap) -> None:
    data = pickle.dumps(to_rows)
    assert len(data) < 4000
    again = pickle.loads(data)  # noqa: S301 (made here)
    assert again.settings == to_rows.settings
    assert again.key == to_rows.key
    assert pickle.dumps(again) == data


def test_its_hash_is_that_of_all_that_determines_a_row(tmp_path: Path, to_rows: RowMap) -> None:
    assert Hasher.hash(RowMap(TOKENIZER)) == Hasher.hash(to_rows)
    folder = Path(shutil.copytree(TOKENIZER, tmp_path / "tokenizer"))
    template = folder / "chat_template.jinja"
    others = [RowMap(TOKENIZER, max_len=77), RowMap(TOKENIZER, server="plain")]
    others.append(RowMap(TOKENIZER, on_reject="skip"))
    hashes = [Hasher.hash(other) for other in others]
    hashes.append(Hasher.hash(RowMap(str(folder))))
    template.write_text(template.read_text("utf-8") + "{# changed #}", "utf-8")
    hashes.append(Hasher.hash(RowMap(str(folder))))
    assert len({Hasher.hash(to_rows), *hashes}) == len(hashes) + 1


def test_what_was_pickled_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(TOKENIZER, tmp_path / "tokenizer"))
    data = pickle.dumps(RowMap(str(folder)))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text("utf-8") + "{# changed #}", "utf-8")
    with pytest.raises(SealMismatch, match=r"RowMap\.key differs"):
        pickle.loads(data)  # noqa: S301 (made here)


# ---- wrong settings


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"on_reject": "drop"}, "on_reject: found 'drop'; expected raise, skip or keep"),
        ({"max_length": 5}, "RowMap: unknown key 'max_length'"),
        ({"max_len": 0}, "max_len"),
        ({"settings": RowSettings(tokenizer=TOKENIZER)}, "settings and single ones beside them"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        RowMap(TOKENIZER, **arguments)


def test_settings_may_be_given_whole() -> None:
    settings = RowSettings(tokenizer=TOKENIZER, max_len=100)
    assert RowMap(settings=settings).key == RowMap(TOKENIZER, max_len=100).key
    assert dataclasses.asdict(RowMap(settings=settings).settings)["max_len"] == 100
