"""The whole job: every line accounted for, the same digest always, never half a set, no stale one."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from pipeline.config import PrepareConfig
from pipeline.errors import DataRefused, UnreadableFile, UsageError
from pipeline.job import assemble
from pipeline.job.prepare import Prepared, prepare
from pipeline.sets.place import MANIFEST
from pipeline.tokens.encoder import TextEncoder
from pipeline.types import NUMERIC_COLUMNS, ROW_SCHEMA, row_features
from tests.conftest import ROOT, write_lines

ConfigMaker = Callable[..., PrepareConfig]
USER = {"role": "user", "content": "Hi"}
RAW = {"id": "raw", "context": "2+2=", "continuation": "4"}


def example(id_: str | int, continuation: Any = "Hello", **values: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "messages": [USER],
        "decision_idx": 1,
        "continuation": continuation,
        **values,
    }


EXAMPLES = [example(f"e{number}", f"answer {number}") for number in range(9)]
TORN, NO_TURN = '{"id": "torn", "context": "x', example("header", "<|im_start|>user")


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "examples.jsonl", EXAMPLES)


def rows_of(prepared: Prepared) -> list[dict[str, Any]]:
    return list(datasets.load_from_disk(str(prepared.output))["train"])


def rejects_of(path: Path) -> list[dict[str, Any]]:
    *lines, rest = path.read_text(encoding="utf-8").split("\n")
    assert rest == ""
    return [json.loads(line) for line in lines]


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the seal without what the encoder was checked on: the first lines of some shard."""
    return {name: value for name, value in manifest["seal"].items() if name != "encoder"}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its bytes, hidden ones too."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


# ---- every line accounted for


def test_the_bundled_examples_become_rows(quickstart_set: Path, bundled_examples: Path) -> None:
    manifest = json.loads((quickstart_set / MANIFEST).read_text("utf-8"))
    counts = manifest["counts"]
    lines = len(bundled_examples.read_bytes().splitlines())
    assert counts["lines"] == counts["rows"] == lines
    assert counts["rejects"] == 0
    assert counts["rows_shortened"] == 1
    rows = datasets.load_from_disk(str(quickstart_set))["train"]
    assert len(rows) == lines
    assert counts["tokens"]["total"] == sum(rows["total_len"])
    assert counts["tokens"]["context"] == sum(rows["context_len"])
    assert counts["tokens"]["continuation"] == sum(rows["total_len"]) - sum(rows["context_len"])
    assert counts["tokens"]["dropped"] == sum(rows["dropped_tokens"])
    assert max(rows["total_len"]) <= manifest["config"]["max_len"]


def test_rows_keep_the_order_of_their_lines_and_say_where_they_came_from(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    folder = tmp_path / "in"
    (folder / "b").mkdir(parents=True)
    write_lines(folder / "b" / "x.jsonl", ["", *EXAMPLES[:3]])
    write_lines(folder / "a.jsonl", EXAMPLES[3:5])
    rows = rows_of(prepare(make_config(folder)))
    assert [row["source"] for row in rows] == [
        "a.jsonl:1",
        "a.jsonl:2",
        "b/x.jsonl:2",
        "b/x.jsonl:3",
        "b/x.jsonl:4",
    ]
    assert [row["id"] for row in rows] == ["e3", "e4", "e0", "e1", "e2"]


def test_a_row_says_what_its_example_said(tmp_path: Path, make_config: ConfigMaker) -> None:
    said = example(7, reason="null", memories=["1e5", ""], weight=0.25, conversation="talk")
    lines = write_lines(tmp_path / "e.jsonl", [said, RAW])
    first, second = rows_of(prepare(make_config(lines)))
    names = ("id", "conversation", "decision_idx", "preference", "reason", "memories", "weight")
    assert [first[name] for name in names] == ["7", "talk", 1, "", "null", ["1e5", ""], 0.25]
    assert [second[name] for name in names] == ["raw", "raw", -1, "", "", [], 1.0]


def test_one_bad_line_publishes_nothing_and_lists_the_rejects(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    lines = write_lines(tmp_path / "e.jsonl", [*EXAMPLES, TORN, NO_TURN, EXAMPLES[0]])
    config = make_config(lines)
    with pytest.raises(DataRefused, match="3 of 12 lines were rejected") as caught:
        prepare(config)
    assert "bad_json 1" in str(caught.value)
    assert "e.jsonl:10" in str(caught.value)
    assert not Path(config.output).exists()
    rejects = tmp_path / "set.rejects.jsonl"
    assert [(each["line"], each["id"], each["code"]) for each in rejects_of(rejects)] == [
        (10, "", "bad_json"),
        (11, "header", "control_tokens"),
        (12, "e0", "duplicate_id"),
    ]
    assert {frozenset(each) for each in rejects_of(rejects)} == {
        frozenset(("file", "line", "id", "code", "reason", "excerpt"))
    }
    assert all(each["file"] == "e.jsonl" for each in rejects_of(rejects))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(".set.work", "e.jsonl", "set.rejects.jsonl")
    ]


def test_allowed_rejects_are_in_the_output_and_counted(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    lines = write_lines(tmp_path / "e.jsonl", [TORN, *EXAMPLES, NO_TURN, "", "[]"])
    with pytest.raises(DataRefused):
        prepare(make_config(lines, max_reject_rate=0.24))
    prepared = prepare(make_config(lines, max_reject_rate=0.25))
    counts = prepared.counts
    assert (counts["lines"], counts["rows"], counts["rejects"]) == (12, 9, 3)
    assert counts["blank_lines"] == 1
    assert counts["by_code"] == {"bad_json": 1, "control_tokens": 1, "not_an_object": 1}
    assert len(rejects_of(prepared.output / "rejects.jsonl")) == 3
    assert not (tmp_path / "set.rejects.jsonl").exists()
    assert [row["id"] for row in rows_of(prepared)] == [f"e{number}" for number in range(9)]


def test_rejects_of_the_reader_count_too(tmp_path: Path, make_config: ConfigMaker) -> None:
    path = tmp_path / "e.jsonl"
    path.write_bytes(json.dumps(EXAMPLES[0]).encode() + b'\n{"id": "caf\xe9"}\n')
    prepared = prepare(make_config(path, max_reject_rate=0.5))
    assert prepared.counts["by_code"] == {"bad_encoding": 1}
    (reject,) = rejects_of(prepared.output / "rejects.jsonl")
    assert (reject["file"], reject["line"]) == ("e.jsonl", 2)


def test_a_set_of_no_rows_is_a_set(tmp_path: Path, make_config: ConfigMaker) -> None:
    lines = write_lines(tmp_path / "e.jsonl", [TORN, NO_TURN])
    prepared = prepare(make_config(lines, max_reject_rate=1))
    assert (prepared.counts["rows"], prepared.counts["rejects"]) == (0, 2)
    assert prepared.digest == "0" * 64
    rows = datasets.load_from_disk(str(prepared.output))["train"]
    assert len(rows) == 0
    assert rows.features == row_features()


@pytest.mark.parametrize("content", [b"", b"\n \r\n\n", b"\xef\xbb\xbf"])
def test_nothing_to_read_is_said(tmp_path: Path, make_config: ConfigMaker, content: bytes) -> None:
    (tmp_path / "e.jsonl").write_bytes(content)
    with pytest.raises(UsageError, match="no line to read"):
        prepare(make_config(tmp_path / "e.jsonl"))


def test_a_file_that_cannot_be_read_to_its_end_stops_the_job(
    tmp_path: Path, make_config: ConfigMaker, examples: Path
) -> None:
    (tmp_path / "z.jsonl").write_text(json.dumps([RAW]))
    before = snapshot(tmp_path)
    with pytest.raises(UnreadableFile, match=r"z\.jsonl:1: unreadable_file: .*JSON array"):
        prepare(make_config([examples, tmp_path / "z.jsonl"], max_reject_rate=1))
    assert snapshot(tmp_path) == before


def test_an_id_of_two_examples_is_refused_and_the_first_place_named(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    write_lines(tmp_path / "a.jsonl", EXAMPLES[:2])
    write_lines(tmp_path / "b.jsonl", [{**EXAMPLES[0], "continuation": "other"}])
    config = make_config(f"{tmp_path}/*.jsonl")
    with pytest.raises(DataRefused, match="duplicate_id 1"):
        prepare(config)
    (tmp_path / "set.rejects.jsonl").unlink()
    prepared = prepare(dataclasses.replace(config, max_reject_rate=0.5))
    (reject,) = rejects_of(prepared.output / "rejects.jsonl")
    assert (reject["file"], reject["line"], reject["code"]) == ("b.jsonl", 1, "duplicate_id")
    assert "a.jsonl:1 has it already (another example)" in reject["reason"]
    assert prepared.counts["rows"] == 2


def test_a_line_that_repeats_another_is_kept_once_and_no_fault(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    lines = write_lines(tmp_path / "e.jsonl", [*EXAMPLES, EXAMPLES[0]])
    prepared = prepare(make_config(lines))
    (reject,) = rejects_of(prepared.output / "rejects.jsonl")
    assert (reject["line"], reject["code"]) == (10, "duplicate_id")
    counts = prepared.counts
    assert (counts["lines"], counts["rows"], counts["rejects"], counts["faults"]) == (10, 9, 1, 0)
    assert prepare(make_config(lines)).was_ready


def test_a_number_and_its_digits_are_one_id(tmp_path: Path, make_config: ConfigMaker) -> None:
    lines = write_lines(
        tmp_path / "e.jsonl", [example(1), example("1"), example("01"), example("a")]
    )
    prepared = prepare(make_config(lines, max_reject_rate=1))
    assert prepared.counts["by_code"] == {"duplicate_id": 1}
    assert [row["id"] for row in rows_of(prepared)] == ["1", "01", "a"]


def test_a_refused_line_does_not_take_its_id(tmp_path: Path, make_config: ConfigMaker) -> None:
    lines = write_lines(tmp_path / "e.jsonl", [example("a", "<|im_start|>"), example("a")])
    prepared = prepare(make_config(lines, max_reject_rate=0.5))
    assert prepared.counts["by_code"] == {"control_tokens": 1}
    assert len(rows_of(prepared)) == 1


@pytest.mark.usefixtures("many_shards")
def test_ids_clash_across_batches_shards_and_processes_too(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    lines = write_lines(tmp_path / "e.jsonl", [*EXAMPLES, EXAMPLES[0]])
    prepared = prepare(make_config(lines, max_reject_rate=1, num_proc=2, batch_size=2))
    (reject,) = rejects_of(prepared.output / "rejects.jsonl")
    assert (reject["line"], reject["id"], reject["code"]) == (10, "e0", "duplicate_id")


# ---- the saved set


def test_the_set_opens_with_datasets_alone(quickstart_set: Path, tmp_path: Path) -> None:
    from_disk = datasets.load_from_disk(str(quickstart_set))
    loaded = datasets.load_dataset(str(quickstart_set), cache_dir=str(tmp_path))
    assert list(loaded) == list(from_disk) == ["train"]
    assert loaded["train"].features == from_disk["train"].features == row_features()
    assert loaded["train"].to_list() == from_disk["train"].to_list()


def test_a_set_with_rejects_opens_with_load_dataset_too(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    lines = write_lines(tmp_path / "e.jsonl", [*EXAMPLES, *[TORN] * 30])
    prepared = prepare(make_config(lines, max_reject_rate=1))
    loaded = datasets.load_dataset(str(prepared.output), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    assert loaded["train"]["id"] == [each["id"] for each in EXAMPLES]


def test_the_saved_schema_is_that_of_the_design(quickstart_set: Path) -> None:
    (shard,) = (quickstart_set / "train").glob("data-*.arrow")
    with pa.memory_map(str(shard)) as source:
        schema = pa.ipc.open_stream(source).schema
    assert [(field.name, field.type) for field in schema] == [
        (field.name, field.type) for field in ROW_SCHEMA
    ]


def test_columns_for_training_are_numbers_alone(examples: Path, make_config: ConfigMaker) -> None:
    prepared = prepare(make_config(examples, columns="train"))
    rows = datasets.load_from_disk(str(prepared.output))["train"]
    assert rows.column_names == list(NUMERIC_COLUMNS)
    assert rows.features == row_features("train")


def test_beside_the_rows_stand_manifest_rejects_and_card(quickstart_set: Path) -> None:
    assert sorted(path.name for path in quickstart_set.iterdir()) == [
        "README.md",
        "dataset_dict.json",
        "examples.sha256",
        "lengths.svg",
        MANIFEST,
        "rejects.jsonl",
        "report.html",
        "train",
    ]
    card = (quickstart_set / "README.md").read_text("utf-8")
    manifest = json.loads((quickstart_set / MANIFEST).read_text("utf-8"))
    assert manifest["digest"] in card
    assert all(name in card for name in ROW_SCHEMA.names)
    assert {
        "digest",
        "seal",
        "counts",
        "config",
        "shards",
        "files",
        "sha256",
    } == set(manifest)
    assert manifest["shards"] == {"made": 1, "reused": 0}
    # The set is shared, and `datasets` keeps its cache of a `map` or `filter` beside the rows.
    lengths = {
        name: len(data)
        for name, data in snapshot(quickstart_set).items()
        if name != MANIFEST and not Path(name).name.startswith("cache-")
    }
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == lengths


def test_the_manifest_holds_the_resolved_config(examples: Path, make_config: ConfigMaker) -> None:
    config = make_config(examples, chat_template_kwargs={"enable_thinking": False})
    prepared = prepare(config)
    assert prepared.manifest["config"] == config.to_dict()
    assert json.loads((prepared.output / MANIFEST).read_text("utf-8")) == prepared.manifest


# ---- deterministic


@pytest.mark.parametrize(
    ("num_proc", "batch_size"), [(1, 1), (1, 7), (1, 1000), (2, 1), (2, 7), (2, 1000)]
)
@pytest.mark.usefixtures("many_shards")
def test_processes_shards_and_batches_do_not_change_the_set(
    bundled_examples: Path,
    quickstart_set: Path,
    make_config: ConfigMaker,
    num_proc: int,
    batch_size: int,
) -> None:
    expected = json.loads((quickstart_set / MANIFEST).read_text("utf-8"))
    config = make_config(
        bundled_examples,
        num_proc=num_proc,
        batch_size=batch_size,
        max_len=768,
        overlong="cut_left",
    )
    prepared = prepare(config)
    assert prepared.digest == expected["digest"]
    assert prepared.counts == expected["counts"]
    assert sealed(prepared.manifest) == sealed(expected)
    assert prepared.manifest["shards"]["made"] > expected["shards"]["made"]
    before = datasets.load_from_disk(str(quickstart_set))["train"]
    assert datasets.load_from_disk(str(prepared.output))["train"].to_list() == before.to_list()


@pytest.mark.parametrize("num_proc", [1, 2])
@pytest.mark.usefixtures("many_shards")
def test_workers_that_share_the_cores_use_one_thread_each(
    examples: Path,
    make_config: ConfigMaker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_proc: int,
) -> None:
    told = tmp_path / "told"
    told.mkdir()
    monkeypatch.setattr(
        TextEncoder, "use_one_thread", lambda _: (told / str(os.getpid())).write_text("")
    )
    assert prepare(make_config(examples, num_proc=num_proc)).manifest["shards"]["made"] > 2
    workers = {int(path.name) for path in told.iterdir()}
    assert len(workers) == num_proc
    assert os.getpid() not in workers


def test_the_digest_never_changes_between_releases(quickstart_set: Path) -> None:
    """Raise `pipeline.sets.seal.SEAL_FORMAT` with it, and say in the changelog why ids are others."""
    manifest = json.loads((quickstart_set / MANIFEST).read_text("utf-8"))
    assert manifest["digest"] == (
        "d2e2b8e305f636e759869d511c764552b89c7eb610048a317b93f042ea55d92e"
    )


def test_the_order_of_lines_changes_the_rows_and_not_the_digest(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    shuffled = random.Random(3).sample(EXAMPLES, len(EXAMPLES))
    one = write_lines(tmp_path / "one.jsonl", EXAMPLES)
    two = write_lines(tmp_path / "two.jsonl", shuffled)
    left = prepare(make_config(one, output=str(tmp_path / "left")))
    right = prepare(make_config(two, output=str(tmp_path / "right")))
    assert left.digest == right.digest
    assert [row["id"] for row in rows_of(right)] == [each["id"] for each in shuffled]


def test_two_runs_make_the_same_bytes(
    tmp_path: Path, make_config: ConfigMaker, examples: Path
) -> None:
    sets: list[dict[str, bytes]] = []
    for name in ("left", "right"):
        prepare(make_config(examples, output=str(tmp_path / name / "set")))
        sets.append(snapshot(tmp_path / name / "set"))
        text = sets[-1].pop(MANIFEST).decode().replace(str(tmp_path / name), "")
        # Of the whole manifest, and so of the name of the output.
        assert len(json.loads(text)["sha256"]) == 64
        sets[-1][MANIFEST] = text[: text.rindex('"sha256"')].encode()
    assert sets[0] == sets[1]


def test_another_continuation_is_another_digest(tmp_path: Path, make_config: ConfigMaker) -> None:
    digests: set[str] = set()
    for number, text in enumerate(("Hello", "Hello ", "hello", "Hello.")):
        lines = write_lines(tmp_path / f"{number}.jsonl", [example("a", text)])
        digests.add(prepare(make_config(lines, output=str(tmp_path / f"set{number}"))).digest)
    assert len(digests) == 4


# ---- never a stale set, never the same work twice


@pytest.fixture
def made(
    tmp_path: Path, examples: Path, make_config: ConfigMaker, bundled_tokenizer: Path
) -> PrepareConfig:
    """The config of a set that is made, with a tokenizer of its own."""
    shutil.copytree(bundled_tokenizer, tmp_path / "tokenizer")
    (tmp_path / "mine.jinja").write_text(
        (bundled_tokenizer / "chat_template.jinja").read_text("utf-8"), "utf-8"
    )
    config = make_config(
        examples,
        tokenizer=str(tmp_path / "tokenizer"),
        chat_template=str(tmp_path / "mine.jinja"),
    )
    assert not prepare(config).was_ready
    return config


def test_a_second_run_says_that_the_set_was_ready_and_touches_nothing(
    made: PrepareConfig, tmp_path: Path
) -> None:
    before = snapshot(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("set/*")}
    prepared = prepare(made)
    assert prepared.was_ready
    assert prepared.manifest == json.loads(before["set/" + MANIFEST])
    assert snapshot(tmp_path) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_second_run_loads_nothing_heavy(made: PrepareConfig) -> None:
    code = (
        "import sys, json\n"
        "from pipeline.job.prepare import prepare\n"
        "from pipeline.config import config_from_mapping\n"
        "config = config_from_mapping(json.loads(sys.argv[1]), 'test')\n"
        "assert prepare(config, quiet=True).was_ready\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'tokenizers'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(made.to_dict())],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    "changes",
    [{"num_proc": 2}, {"batch_size": 1}, {"overwrite": True}, {"max_reject_rate": 1.0}],
    ids=str,
)
def test_a_setting_that_changes_no_byte_is_answered_at_once(
    made: PrepareConfig, changes: dict[str, Any]
) -> None:
    assert prepare(dataclasses.replace(made, **changes)).was_ready


@pytest.mark.parametrize(
    "changes",
    [
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"server": "plain"},
        {"server_options": {"content_format": "string"}},
        {"raw_context": "completions"},
        {"max_len": 100},
        {"overlong": "reject"},
        {"end_of_turn": "none"},
        {"think": "keep"},
        {"control_tokens": "reject"},
        {"columns": "train"},
        {"chat_template": None},
    ],
    ids=str,
)
def test_a_setting_that_may_change_a_byte_is_never_answered_from_the_old_set(
    made: PrepareConfig, changes: dict[str, Any]
) -> None:
    changed = dataclasses.replace(made, **changes)
    with pytest.raises(UsageError, match=r"holds a set that this job did not make: seal\.\w+"):
        prepare(changed)
    assert prepare(dataclasses.replace(changed, overwrite=True)).done == "replaced"
    assert prepare(changed).was_ready
    with pytest.raises(UsageError, match="--append to add to it, or --overwrite to replace it"):
        prepare(made)


@pytest.mark.parametrize(
    "name",
    [
        "examples.jsonl",
        "mine.jinja",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/chat_template.jinja",
        "tokenizer/config.json",
        "tokenizer/generation_config.json",
    ],
)
def test_one_byte_more_in_any_file_is_noticed(
    made: PrepareConfig, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes() + b"\n")
    # Nothing may lean on the time of a file.
    os.utime(path, ns=times)
    before = snapshot(tmp_path)
    with pytest.raises(
        UsageError, match=r"this job did not make: seal\.(input|tokenizer|chat_temp)"
    ):
        prepare(made)
    assert snapshot(tmp_path) == before


def test_a_changed_template_changes_the_rows(made: PrepareConfig, tmp_path: Path) -> None:
    before = prepare(made).digest
    path = tmp_path / "mine.jinja"
    path.write_text(path.read_text("utf-8").replace("<|im_start|>assistant", "<|im_start|>model"))
    assert prepare(dataclasses.replace(made, overwrite=True)).digest != before


@pytest.mark.parametrize("damage", ["remove", "cut"])
def test_a_set_that_is_not_whole_is_made_again(
    made: PrepareConfig, tmp_path: Path, damage: str
) -> None:
    before = snapshot(tmp_path / "set")
    (shard,) = (tmp_path / "set" / "train").glob("*.arrow")
    if damage == "remove":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-8])
    assert prepare(made).describe() == f"replaced {len(EXAMPLES)} rows by {len(EXAMPLES)}"
    assert snapshot(tmp_path / "set") == before


@pytest.mark.parametrize("name", ["notes.txt", "train/checkpoint-7/model.bin", "link"])
def test_a_file_that_somebody_put_into_a_set_is_not_lost_with_it(
    made: PrepareConfig, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "set" / name
    path.parent.mkdir(exist_ok=True)
    if name == "link":
        path.symlink_to(tmp_path)
    else:
        path.write_text("mine")
    cache = tmp_path / "set" / "train" / "cache-0123456789abcdef.arrow"
    cache.write_bytes(b"what datasets can make again")
    before = snapshot(tmp_path)
    assert prepare(made).was_ready
    changed = dataclasses.replace(made, license="mit")
    with pytest.raises(UsageError, match=f"holds {name}, which is not a file of its set; move it"):
        prepare(changed)
    more = write_lines(tmp_path / "more.jsonl", [example("more")])
    with pytest.raises(UsageError, match="which is not a file of its set"):
        prepare(dataclasses.replace(made, input=(str(more),), append=True))
    more.unlink()
    assert snapshot(tmp_path) == before
    path.unlink()
    assert prepare(changed).done == "replaced"
    assert not cache.exists()


def test_a_set_that_lacks_the_list_of_its_files_is_replaced_only_when_asked(
    made: PrepareConfig, tmp_path: Path
) -> None:
    manifest = json.loads((tmp_path / "set" / MANIFEST).read_text("utf-8"))
    del manifest["files"], manifest["counts"]
    (tmp_path / "set" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="which is not a file of its set"):
        prepare(made)
    assert prepare(dataclasses.replace(made, overwrite=True)).describe() == (
        f"replaced what was no set of ours by {len(EXAMPLES)}"
    )


def test_an_appended_set_is_not_replaced_by_the_job_that_began_it(
    made: PrepareConfig, tmp_path: Path
) -> None:
    more = write_lines(tmp_path / "more.jsonl", [example("more")])
    adding = dataclasses.replace(made, input=(str(more),), append=True)
    assert prepare(adding).describe() == f"added 1 to {len(EXAMPLES)} rows"
    assert prepare(adding).describe() == "unchanged"
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match=r"did not make: seal\.input\[1\] is .*more\.jsonl"):
        prepare(made)
    assert snapshot(tmp_path) == before


def test_a_pulled_set_without_its_provenance_is_not_replaced(
    made: PrepareConfig, tmp_path: Path
) -> None:
    path = tmp_path / "set" / MANIFEST
    manifest = json.loads(path.read_text("utf-8"))
    manifest["left_out"] = {"columns": ["reason"], "files": []}
    path.write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="was pulled without its provenance"):
        prepare(dataclasses.replace(made, license="mit"))


# ---- rejects


def test_a_refused_job_keeps_its_shards_for_a_run_that_allows_rejects(
    tmp_path: Path, make_config: ConfigMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = write_lines(tmp_path / "e.jsonl", [*EXAMPLES, TORN])
    with pytest.raises(DataRefused, match=r"All are in .*set\.rejects\.jsonl"):
        prepare(make_config(lines))
    said = capsys.readouterr().err
    assert re.search(r"e\.jsonl:\d+: bad_json: .*; this run will publish nothing", said)
    with pytest.raises(DataRefused):
        prepare(make_config(lines, on_duplicate="first"))
    assert "shard 0 has rejects (bad_json 1); this run" in capsys.readouterr().err
    made = prepare(make_config(lines, max_reject_rate=0.5))
    assert made.manifest["shards"] == {"made": 1, "reused": 1}
    assert "will publish nothing" not in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.jsonl", "set"]


def test_the_rejects_of_somebody_else_are_neither_replaced_nor_removed(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    lines = write_lines(tmp_path / "e.jsonl", [*EXAMPLES, TORN])
    mine = tmp_path / "set.rejects.jsonl"
    mine.write_text("my notes on rejects\n")
    for _ in range(2):
        with pytest.raises(DataRefused, match=r"All are in .*set\.rejects\.1\.jsonl"):
            prepare(make_config(lines))
    assert (tmp_path / "set.rejects.1.jsonl").is_file()
    prepare(make_config(lines, max_reject_rate=0.5))
    assert mine.read_text() == "my notes on rejects\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.jsonl", "set", mine.name]


def test_rejects_that_somebody_mends_are_kept(tmp_path: Path, make_config: ConfigMaker) -> None:
    lines = write_lines(tmp_path / "e.jsonl", [*EXAMPLES, TORN])
    with pytest.raises(DataRefused):
        prepare(make_config(lines))
    written = tmp_path / "set.rejects.jsonl"
    written.write_text(written.read_text("utf-8") + "mended\n", "utf-8")
    prepare(make_config(lines, max_reject_rate=0.5))
    assert written.read_text("utf-8").endswith("mended\n")


def test_a_stricter_rate_refuses_a_set_that_a_laxer_one_made(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    lines = write_lines(tmp_path / "e.jsonl", [*EXAMPLES, TORN])
    prepare(make_config(lines, max_reject_rate=0.1))
    assert prepare(make_config(lines, max_reject_rate=0.5)).was_ready
    before = snapshot(tmp_path / "set")
    with pytest.raises(DataRefused):
        prepare(make_config(lines))
    assert snapshot(tmp_path / "set") == before


# ---- what may be written where


def test_a_foreign_folder_is_left_alone_unless_asked(
    examples: Path, make_config: ConfigMaker, tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match="--overwrite"):
        prepare(make_config(examples))
    assert snapshot(tmp_path) == before
    assert not prepare(make_config(examples, overwrite=True)).was_ready
    assert not (tmp_path / "set" / "thesis.tex").exists()


@pytest.mark.parametrize("place", ["set/e.jsonl", "set/tokenizer", "set/mine.jinja"])
def test_a_job_never_replaces_what_it_reads(
    examples: Path,
    make_config: ConfigMaker,
    tmp_path: Path,
    bundled_tokenizer: Path,
    place: str,
) -> None:
    path = tmp_path / place
    path.parent.mkdir()
    settings: dict[str, Any] = {"overwrite": True}
    if path.suffix == ".jsonl":
        examples = Path(shutil.copy(examples, path))
    elif path.suffix == ".jinja":
        shutil.copy(bundled_tokenizer / "chat_template.jinja", path)
        settings["chat_template"] = str(path)
    else:
        settings["tokenizer"] = str(shutil.copytree(bundled_tokenizer, path))
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match="choose an output apart from the inputs"):
        prepare(make_config(examples, **settings))
    assert snapshot(tmp_path) == before


def test_an_output_in_an_input_folder_is_refused(tmp_path: Path, make_config: ConfigMaker) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_lines(folder / "e.jsonl", EXAMPLES)
    with pytest.raises(UsageError, match="lies in the input folder"):
        prepare(make_config(folder, output=str(folder / "deep" / "set")))
    assert list(snapshot(tmp_path)) == ["in/e.jsonl"]


def test_rejects_of_the_last_run_are_never_examples_of_the_next(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    write_lines(tmp_path / "e.jsonl", [*EXAMPLES, TORN])
    config = make_config(f"{tmp_path}/*.jsonl")
    with pytest.raises(DataRefused):
        prepare(config)
    assert (tmp_path / "set.rejects.jsonl").exists()
    with pytest.raises(UsageError, match="choose an output apart from the inputs"):
        prepare(config)


def test_settings_may_be_keywords_but_not_beside_a_config(
    examples: Path, make_config: ConfigMaker
) -> None:
    config = make_config(examples)
    with pytest.raises(UsageError, match="a config and max_len"):
        prepare(config, max_len=5)
    prepared = prepare(
        input=str(examples), tokenizer=config.tokenizer, output=config.output, num_proc=1
    )
    assert prepare(config).was_ready
    assert prepared.counts["rows"] == len(EXAMPLES)
    with pytest.raises(UsageError, match="prepare: unknown key 'max_length'"):
        prepare(input="x", tokenizer="y", output="z", max_length=3)


# ---- never half a set


@pytest.mark.parametrize("place", ["build.open_shards", "save.save_rows", "save.write_card"])
def test_a_full_disk_leaves_the_old_set_and_no_rest(
    made: PrepareConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    before = snapshot(tmp_path)

    def fill(*_: object, **__: object) -> None:
        half = tmp_path / ".set.work" / "staging" / "train"
        half.mkdir(parents=True, exist_ok=True)
        (half / "data-00000-of-00001.arrow").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(f"pipeline.job.{place}", fill)
    with pytest.raises(UsageError, match=r"No space left on device; about \d+ bytes are needed"):
        prepare(dataclasses.replace(made, max_len=100, overwrite=True))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("worker died")])
def test_whatever_stops_the_job_leaves_the_old_set_and_no_rest(
    made: PrepareConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = snapshot(tmp_path)

    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(assemble, "find_duplicates", stop)
    with pytest.raises(type(error)):
        prepare(dataclasses.replace(made, max_len=100, overwrite=True))
    assert snapshot(tmp_path) == before
    assert prepare(made).was_ready


# ---- streams


def test_standard_input_is_read_and_sealed_by_its_content(
    tmp_path: Path, bundled_tokenizer: Path, make_config: ConfigMaker
) -> None:
    config = make_config("-", tokenizer=str(bundled_tokenizer))
    code = (
        "import json, sys\n"
        "from pipeline.job.prepare import prepare\n"
        "from pipeline.config import config_from_mapping\n"
        "config = config_from_mapping(json.loads(sys.argv[1]), 'test')\n"
        "made = prepare(config, quiet=True)\n"
        "print(json.dumps([made.was_ready, made.counts['rows'], made.manifest['seal']['input']]))\n"
    )
    answers: list[Any] = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(config.to_dict())],
            input="".join(json.dumps(line) + "\n" for line in EXAMPLES),
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
    assert [answer[0] for answer in answers] == [False, True]
    assert answers[0][1:] == answers[1][1:]
    assert answers[0][1] == len(EXAMPLES)
    assert [file["name"] for file in answers[0][2]] == ["stdin"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_a_licence_that_is_said_later_reaches_the_card(
    examples: Path, make_config: ConfigMaker
) -> None:
    first = prepare(make_config(examples))
    assert "apache-2.0" not in (first.output / "README.md").read_text("utf-8")
    later = prepare(make_config(examples, license="apache-2.0"))
    assert later.digest == first.digest
    assert "license: apache-2.0" in (later.output / "README.md").read_text("utf-8")
