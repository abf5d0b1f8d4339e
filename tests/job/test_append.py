"""Adding to a saved set: the same set as one run over everything, or a refusal that says why."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from datasets import load_from_disk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import prepare
from pipeline.config import PrepareConfig
from pipeline.errors import DataRefused, SealMismatch, UsageError
from pipeline.job.prepared import Prepared
from pipeline.sets.load import verify
from tests.conftest import ROOT, shards_of, talk, write_lines

ConfigMaker = Callable[..., PrepareConfig]
BUNDLED = ROOT / "configs" / "tokenizer"


def example(id_: Any, continuation: str = "4", **values: Any) -> dict[str, Any]:
    return {"id": id_, "context": "2+2=", "continuation": continuation, **values}


def append(config: PrepareConfig, folder: Path, rows: Sequence[Any], **changes: Any) -> Prepared:
    """Append rows, written to a new file in ``folder``, to the set of ``config``."""
    number = len(list(folder.glob("new*.jsonl")))
    lines = write_lines(folder / f"new{number}.jsonl", rows)
    return prepare(dataclasses.replace(config, input=(str(lines),), append=True, **changes))


def rows_of(output: Path, split: str = "train") -> list[dict[str, Any]]:
    return load_from_disk(str(output))[split].to_list()


def contents_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def made(tmp_path: Path, make_config: ConfigMaker) -> PrepareConfig:
    """The config of a set of three rows that is there already."""
    lines = write_lines(tmp_path / "old.jsonl", [example(id_) for id_ in "abc"])
    config = make_config(lines)
    prepare(config)
    return config


# ---- the same set as one run


@settings(max_examples=4, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12),
    st.data(),
    st.sampled_from(["all", "given"]),
    st.sampled_from([100, 300, 2**20]),
)
def test_any_two_parts_give_the_digest_and_rows_of_one_run(
    ids: str, data: st.DataObject, decisions: Any, size: int
) -> None:
    lines = [talk(id_, f"{id_} one", f"{id_} two") for id_ in ids]
    cut = data.draw(st.integers(1, len(lines)), "cut")
    overlap = data.draw(st.integers(cut == len(lines), cut), "overlap")
    with TemporaryDirectory() as place:
        folder = Path(place)
        base = PrepareConfig(
            input=(str(write_lines(folder / "all.jsonl", lines)),),
            tokenizer=str(BUNDLED),
            output=str(folder / "once"),
            num_proc=1,
            report=False,
            decisions=decisions,
            validation_fraction=0.5,
        )
        once = prepare(base)
        first = write_lines(folder / "first.jsonl", lines[:cut])
        parts = dataclasses.replace(base, input=(str(first),), output=str(folder / "parts"))
        prepare(parts)
        with shards_of(size):
            both = append(parts, folder, lines[cut - overlap :])
        assert both.digest == once.digest
        assert verify(both.output) == []
        splits = once.counts["rows_by_split"]
        assert set(load_from_disk(str(both.output))) == set(splits)
        assert all(splits.values())
        for split in splits:
            told_apart = [
                {name: value for name, value in row.items() if name != "source"}
                for row in rows_of(both.output, split)
            ]
            assert told_apart == [
                {name: value for name, value in row.items() if name != "source"}
                for row in rows_of(once.output, split)
            ]
        counts = both.counts
        assert counts["points"] == counts["rows"] + counts["rejects"]
        for name in ("rows", "rows_by_split", "tokens", "by_flag", "rows_as_served"):
            assert counts[name] == once.counts[name]
        name = "examples.sha256"
        assert (both.output / name).read_bytes() == (once.output / name).read_bytes()


def test_earlier_rows_stay_as_they_are_and_come_first(made: PrepareConfig, tmp_path: Path) -> None:
    before: pa.Table = load_from_disk(made.output)["train"].data.table
    append(made, tmp_path, [example("d"), example("a")])
    after: pa.Table = load_from_disk(made.output)["train"].data.table
    assert after.slice(0, 3).equals(before)
    assert after.column("id").to_pylist() == ["a", "b", "c", "d"]


def test_appending_nothing_new_leaves_every_file_as_it_was(
    made: PrepareConfig, tmp_path: Path
) -> None:
    before = contents_of(Path(made.output))
    append(made, tmp_path, [example("c"), example("a")])
    assert contents_of(Path(made.output)) == before


def test_appending_again_changes_nothing(made: PrepareConfig, tmp_path: Path) -> None:
    first = append(made, tmp_path, [example("d")])
    before = contents_of(first.output)
    again = append(made, tmp_path, [example("d")])
    assert again.digest == first.digest
    assert contents_of(first.output) == before


def test_many_appends_are_one_set(made: PrepareConfig, tmp_path: Path) -> None:
    for id_ in "defg":
        append(made, tmp_path, [example(id_)])
    lines = write_lines(tmp_path / "all.jsonl", [example(id_) for id_ in "abcdefg"])
    once = prepare(dataclasses.replace(made, input=(str(lines),), output=str(tmp_path / "once")))
    manifest = json.loads((Path(made.output) / "manifest.json").read_text("utf-8"))
    assert manifest["digest"] == once.digest
    assert manifest["counts"] == once.counts
    names = [file["name"] for file in manifest["seal"]["input"]]
    assert names == ["old.jsonl", *(f"new{number}.jsonl" for number in range(4))]
    assert verify(made.output) == []


# ---- ids that stand twice


def test_another_example_of_an_id_is_refused_and_the_old_set_stays(
    made: PrepareConfig, tmp_path: Path
) -> None:
    before = contents_of(Path(made.output))
    with pytest.raises(DataRefused, match="the set has it already"):
        append(made, tmp_path, [example("d"), example("a", "5")])
    assert contents_of(Path(made.output)) == before


def remake(made: PrepareConfig, on_duplicate: Any) -> PrepareConfig:
    config = dataclasses.replace(made, on_duplicate=on_duplicate)
    prepare(dataclasses.replace(config, overwrite=True))
    return config


def test_first_keeps_the_sets_example(made: PrepareConfig, tmp_path: Path) -> None:
    config = remake(made, "first")
    before = rows_of(Path(made.output))
    appended = append(config, tmp_path, [example("a", "5"), example("d")])
    assert rows_of(appended.output)[:3] == before
    counts = appended.counts
    assert (counts["lines"], counts["rows"], counts["rejects"], counts["faults"]) == (5, 4, 1, 0)


def test_last_replaces_and_what_went_is_a_reject_as_in_one_run(
    made: PrepareConfig, tmp_path: Path
) -> None:
    config = remake(made, "last")
    lines = [example("b", "5"), example("d")]
    appended = append(config, tmp_path, lines)
    everything = write_lines(tmp_path / "all.jsonl", [*(example(id_) for id_ in "abc"), *lines])
    once = prepare(
        dataclasses.replace(config, input=(str(everything),), output=str(tmp_path / "once"))
    )
    assert [row["id"] for row in rows_of(appended.output)] == ["a", "c", "b", "d"]
    assert appended.digest == once.digest
    assert appended.counts == once.counts
    assert verify(appended.output) == []
    (reject,) = (appended.output / "rejects.jsonl").read_text("utf-8").splitlines()
    assert json.loads(reject)["file"] == "old.jsonl"
    assert json.loads(reject)["line"] == 2
    assert "new0.jsonl:1 has another example of this id" in json.loads(reject)["reason"]
    # What was replaced is forgotten: the old one would be new again.
    assert append(config, tmp_path, lines).digest == once.digest


def test_all_rows_of_a_replaced_conversation_go(tmp_path: Path, make_config: ConfigMaker) -> None:
    lines = write_lines(tmp_path / "old.jsonl", [talk("a", "one", "two"), talk("b", "three")])
    config = make_config(lines, decisions="all", on_duplicate="last")
    prepare(config)
    appended = append(config, tmp_path, [talk("a", "four")])
    assert [row["id"] for row in rows_of(appended.output)] == ["b", "a"]
    counts = appended.counts
    assert (counts["points"], counts["rows"], counts["rejects"]) == (4, 2, 2)


# ---- rejects


def test_rejects_of_both_are_kept_and_counted(tmp_path: Path, make_config: ConfigMaker) -> None:
    lines = write_lines(tmp_path / "old.jsonl", [example("a\u2028b"), example("b", "<|im_start|>")])
    config = make_config(lines, max_reject_rate=0.7)
    prepare(config)
    # A line separator within a reason is no end of its line.
    appended = append(
        config, tmp_path, ["{torn", example("c"), example("x\u2028y", "<|im_start|>")]
    )
    counts = appended.counts
    assert (counts["lines"], counts["rows"], counts["rejects"], counts["faults"]) == (5, 2, 3, 3)
    text = (appended.output / "rejects.jsonl").read_text("utf-8")
    assert [json.loads(line)["file"] for line in text.split("\n")[:-1]] == [
        "old.jsonl",
        "new0.jsonl",
        "new0.jsonl",
    ]
    assert verify(appended.output) == []


def test_the_rejected_point_of_a_known_line_is_not_counted_again(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    lines = [talk("a", "one", ""), talk("b", "two")]
    config = make_config(
        write_lines(tmp_path / "old.jsonl", lines), decisions="all", max_reject_rate=0.5
    )
    before = prepare(config)
    appended = append(config, tmp_path, [*lines, talk("c", "three")])
    assert appended.counts["by_code"] == before.counts["by_code"] == {"empty_continuation": 1}
    counts = appended.counts
    assert (counts["lines"], counts["points"], counts["rows"], counts["faults"]) == (3, 4, 3, 1)


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"max_len": 64}, "seal.settings.max_len"),
        ({"decisions": "all"}, "seal.settings.decisions"),
        ({"validation_fraction": 0.1}, "seal.settings.validation_fraction"),
        ({"server": "plain"}, "seal.server.name"),
        ({"chat_template_kwargs": {"x": 1}}, "seal.settings.chat_template_kwargs.x"),
    ],
)
def test_another_seal_is_refused_with_the_key_that_differs(
    made: PrepareConfig, tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    before = contents_of(Path(made.output))
    with pytest.raises(SealMismatch, match=key) as caught:
        append(made, tmp_path, [example("d")], **changes)
    assert "prepare everything again" in str(caught.value)
    assert contents_of(Path(made.output)) == before


def test_another_tokenizer_is_refused(made: PrepareConfig, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BUNDLED, tmp_path / "tokenizer"))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text("utf-8") + "{# another #}", "utf-8")
    with pytest.raises(SealMismatch, match=r"seal\.templates|chat_template\.jinja"):
        append(made, tmp_path, [example("d")], tokenizer=str(folder))


def test_the_way_it_is_run_is_no_part_of_the_seal(made: PrepareConfig, tmp_path: Path) -> None:
    appended = append(made, tmp_path, [example("d")], batch_size=1, max_reject_rate=0.5)
    assert appended.counts["rows"] == 4


def test_there_must_be_a_set_to_append_to(tmp_path: Path, make_config: ConfigMaker) -> None:
    lines = write_lines(tmp_path / "e.jsonl", [example("a")])
    with pytest.raises(
        UsageError, match=r"append: .*no set there; expected one, or leave append out"
    ):
        prepare(make_config(lines, append=True))
    assert not (tmp_path / "set").exists()


def test_columns_for_training_cannot_be_appended_to(
    tmp_path: Path, make_config: ConfigMaker
) -> None:
    config = make_config(write_lines(tmp_path / "e.jsonl", [example("a")]), columns="train")
    prepare(config)
    with pytest.raises(UsageError, match="columns: train keeps no ids"):
        append(config, tmp_path, [example("b")])


@pytest.mark.parametrize(
    "name", ["examples.sha256", "train/data-00000-of-00001.arrow", "rejects.jsonl", "README.md"]
)
@pytest.mark.parametrize("damage", ["one bit", "longer", "missing"])
def test_a_set_that_was_changed_is_refused_with_the_file_named(
    made: PrepareConfig, tmp_path: Path, name: str, damage: str
) -> None:
    # Its files are taken over as they are, so nothing else would look at them.
    path = Path(made.output) / name
    data = bytearray(path.read_bytes() or b" ")
    if damage == "missing":
        path.unlink()
    elif damage == "longer":
        path.write_bytes(data + b" ")
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(SealMismatch) as caught:
        append(made, tmp_path, [example("d")])
    assert caught.value.key == name


# ---- whatever stops it


@pytest.mark.parametrize("place", ["build.assemble", "save.save_rows", "save.write_card"])
def test_an_append_that_is_stopped_leaves_the_old_set(
    made: PrepareConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    before = contents_of(Path(made.output))

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"pipeline.job.{place}", stop)
        with pytest.raises(KeyboardInterrupt):
            append(made, tmp_path, [example("d")])
    assert contents_of(Path(made.output)) == before
    assert append(made, tmp_path, [example("d")]).counts["rows"] == 4


KILL = """
import json, os, signal, sys
from pipeline.config import config_from_mapping
from pipeline.job import build, prepare as job
from pipeline.sets.place import Target

home, name = sys.argv[2:]
home = {"build": build, "target": Target}[home]
function = getattr(home, name)
def killed(*arguments, **named):
    function(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(home, name, killed)
job.prepare(config_from_mapping(json.loads(sys.argv[1]), "test"))
"""


def kill_after(config: PrepareConfig, home: str, name: str) -> None:
    """Run a job that is killed as soon as a function of one of its parts has returned."""
    arguments = [sys.executable, "-c", KILL, json.dumps(config.to_dict()), home, name]
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


def test_a_killed_append_leaves_the_old_set_and_the_next_one_finishes(
    made: PrepareConfig, tmp_path: Path
) -> None:
    before = contents_of(Path(made.output))
    lines = write_lines(tmp_path / "more.jsonl", [example("d")])
    config = dataclasses.replace(made, input=(str(lines),), append=True)
    kill_after(config, "build", "write_set")
    assert contents_of(Path(made.output)) == before
    appended = prepare(config)
    assert appended.counts["rows"] == 4
    assert appended.manifest["shards"]["reused"] == 1
    assert verify(made.output) == []


@pytest.mark.parametrize("on_duplicate", [pytest.param("error", marks=pytest.mark.nightly), "last"])
def test_an_append_that_was_killed_once_it_was_published_can_be_run_again(
    tmp_path: Path, make_config: ConfigMaker, on_duplicate: Any
) -> None:
    lines = write_lines(tmp_path / "old.jsonl", [example(id_) for id_ in "abc"])
    config = make_config(lines, on_duplicate=on_duplicate)
    prepare(config)
    more = [example("b"), example("d"), example("e")]
    if on_duplicate == "last":
        more.append(example("a", "5"))
    lines = write_lines(tmp_path / "more.jsonl", more)
    config = dataclasses.replace(config, input=(str(lines),), append=True)
    kill_after(config, "target", "publish")
    published = contents_of(Path(config.output))
    assert verify(config.output) == []
    prepare(config)
    assert contents_of(Path(config.output)) == published
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
