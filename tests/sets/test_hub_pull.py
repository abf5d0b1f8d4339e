"""Pull: the rows come back as they were, checked before they are there, whatever a repository holds."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli.command import main
from pipeline.config import PrepareConfig
from pipeline.errors import DataRefused, HubFailed, UsageError
from pipeline.job.clean import find_leftovers
from pipeline.job.prepare import Prepared, prepare
from pipeline.sets import folder
from pipeline.sets.damage import hash_manifest
from pipeline.sets.hub.pull import PullChoice, Pulled, pull_set
from pipeline.sets.hub.push import push_set
from pipeline.sets.hub.push_rules import PushChoice
from pipeline.sets.load import load, verify
from pipeline.sets.place import Target
from pipeline.types import row_features
from tests.conftest import ROOT, talk, write_lines
from tests.hub_server import TOKEN, Fault, Hub, Repo, hub_of_this_process, serve_hub

REPO = "team/rows"
ROWS_FILE = "data/train-00000-of-00001.parquet"


def make_set(folder: Path, rows: int, **settings: Any) -> Path:
    folder.mkdir()
    lines = [
        {**talk(f"e{at}", "Yes. " * (1 + at % 5)), "reason": f"r{at}", "memories": ["ä", ""]}
        for at in range(rows)
    ]
    config = PrepareConfig(
        input=(str(write_lines(folder / "logs.jsonl", [*lines, "no example"])),),
        tokenizer=str(ROOT / "configs" / "tokenizer"),
        output=str(folder / "made"),
        num_proc=1,
        max_reject_rate=1.0,
        report=False,
        **settings,
    )
    return prepare(config).output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("pull") / "a", 30, validation_fraction=0.3)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("pull") / "b", 20, columns="train")


@pytest.fixture
def hub(tmp_path: Path, tokenizers_loaded_once: None) -> Iterator[Hub]:
    with hub_of_this_process(tmp_path / "cache") as hub:
        yield hub


@pytest.fixture
def pushed(hub: Hub, made: Path) -> Repo:
    """The repository that holds ``made``."""
    push_set(str(made), REPO, PushChoice())
    return hub.repos[REPO]


def pull(output: Path, repo: str = REPO, **choice: Any) -> Pulled:
    return pull_set(repo, str(output), PullChoice(**choice))


def contents_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_bytes())


def assert_same_rows(left: Path, right: Path) -> None:
    ours, theirs = (datasets.load_from_disk(str(path)) for path in (left, right))
    assert list(ours) == list(theirs)
    for split in ours:
        assert ours[split].features == theirs[split].features
        assert list(ours[split]) == list(theirs[split])


# ---- the rows come back


@pytest.mark.parametrize("name", ["made", "numbers"])
def test_a_pulled_set_is_the_pushed_one(
    hub: Hub, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(name)
    push_set(str(path), REPO, PushChoice())
    pulled = pull(tmp_path / "set")
    assert not pulled.was_there
    assert_same_rows(path, tmp_path / "set")
    assert verify(tmp_path / "set", str(ROOT / "configs" / "tokenizer")) == []
    assert manifest_of(tmp_path / "set")["digest"] == manifest_of(path)["digest"]
    for beside in ("rejects.jsonl", "examples.sha256"):
        assert (tmp_path / "set" / beside).read_bytes() == (path / beside).read_bytes()
    columns = "train" if name == "numbers" else "full"
    for rows in load(tmp_path / "set").values():
        assert rows.features == row_features(columns)


def test_rows_of_many_files_keep_their_order(
    hub: Hub, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "FILE_BYTES", 500)
    push_set(str(made), REPO, PushChoice())
    files = [name for name in hub.repos[REPO].files if name.startswith("data/train-")]
    assert len(files) > 2
    pull(tmp_path / "set")
    assert_same_rows(made, tmp_path / "set")


def test_a_public_set_lacks_its_provenance_says_so_and_verifies(
    hub: Hub, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push_set(str(made), REPO, PushChoice(public=True))
    assert main(["pull", REPO, str(tmp_path / "set")]) == 0
    said = capsys.readouterr().out
    assert "left out when it was pushed: columns memories, reason, source; files examples" in said
    assert verify(tmp_path / "set") == []
    assert manifest_of(tmp_path / "set")["digest"] == manifest_of(made)["digest"]
    whole, lacking = (load(path)["train"] for path in (made, tmp_path / "set"))
    assert lacking.features == whole.features
    for name in whole.column_names:
        expected = {"source": "", "reason": "", "memories": []}.get(name)
        for row, pulled in zip(whole, lacking, strict=True):
            assert pulled[name] == (row[name] if expected is None else expected)
    card = (tmp_path / "set" / "README.md").read_text("utf-8")
    assert "these columns are empty here: no columns `memories`, `reason`, `source`" in card


def append_to(folder: Path, **settings: Any) -> Prepared:
    """Append one example to a pulled set."""
    more = write_lines(folder.with_name("more.jsonl"), [talk("x", "Yes.")])
    return prepare(
        PrepareConfig(
            input=(str(more),),
            tokenizer=str(ROOT / "configs" / "tokenizer"),
            output=str(folder),
            validation_fraction=0.3,
            append=True,
            num_proc=1,
            **settings,
        )
    )


def test_a_public_set_is_no_set_to_append_to(hub: Hub, made: Path, tmp_path: Path) -> None:
    push_set(str(made), REPO, PushChoice(public=True))
    pull(tmp_path / "set")
    with pytest.raises(UsageError, match="was pulled without its provenance"):
        append_to(tmp_path / "set")


def test_a_whole_pulled_set_can_be_appended_to(pushed: Repo, tmp_path: Path) -> None:
    pull(tmp_path / "set")
    assert append_to(tmp_path / "set", max_reject_rate=1.0, report=False).counts["rows"] == 31
    assert verify(tmp_path / "set") == []


def test_a_pulled_set_pushed_again_lacks_what_it_lacked(
    hub: Hub, made: Path, tmp_path: Path
) -> None:
    push_set(str(made), REPO, PushChoice(public=True))
    pull(tmp_path / "set")
    again = push_set(str(tmp_path / "set"), "team/again", PushChoice())
    assert again.manifest["left_out"]["columns"] == ["memories", "reason", "source"]
    pull(tmp_path / "twice", "team/again")
    assert_same_rows(tmp_path / "set", tmp_path / "twice")


def test_a_revision_gives_the_set_as_it_was(
    pushed: Repo, made: Path, numbers: Path, tmp_path: Path
) -> None:
    before = pushed.branches["main"]
    push_set(str(numbers), REPO, PushChoice(overwrite=True))
    pull(tmp_path / "old", revision=before)
    pull(tmp_path / "new")
    assert_same_rows(made, tmp_path / "old")
    assert_same_rows(numbers, tmp_path / "new")


# ---- what stands at the output


def test_a_set_that_is_there_already_is_left(pushed: Repo, hub: Hub, tmp_path: Path) -> None:
    pull(tmp_path / "set")
    before = contents_of(tmp_path / "set")
    hub.requests.clear()
    assert pull(tmp_path / "set").was_there
    assert contents_of(tmp_path / "set") == before
    assert hub.count(rf"\w+ /datasets/{REPO}/resolve/.*parquet") == 0


def test_a_damaged_copy_is_fetched_again_when_asked(pushed: Repo, tmp_path: Path) -> None:
    pull(tmp_path / "set")
    (tmp_path / "set" / "rejects.jsonl").write_text("changed")
    assert not pull(tmp_path / "set", overwrite=True).was_there
    assert verify(tmp_path / "set") == []


def test_another_set_at_the_output_is_replaced_only_when_asked(
    pushed: Repo, made: Path, numbers: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(numbers, tmp_path / "set"))
    before = contents_of(output)
    with pytest.raises(UsageError, match="holds another set; choose another folder"):
        pull(output)
    assert contents_of(output) == before
    pull(output, overwrite=True)
    assert_same_rows(made, output)


def test_a_folder_of_others_is_replaced_only_when_asked(pushed: Repo, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="not a set of ours"):
        pull(tmp_path / "set")
    assert (tmp_path / "set" / "thesis.txt").exists()


@pytest.mark.parametrize("place", ["save_rows", "write_card", "verify", "Target.publish"])
def test_a_pull_that_is_stopped_leaves_what_was_there(
    pushed: Repo, numbers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    output = Path(shutil.copytree(numbers, tmp_path / "set"))
    before = contents_of(output)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"pipeline.sets.hub.pull.{place}", stop)
    with pytest.raises(KeyboardInterrupt):
        pull(output, overwrite=True)
    assert contents_of(output) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_a_killed_pull_leaves_is_known_to_clean(tmp_path: Path) -> None:
    Target(str(tmp_path / "set")).open_work("pull")
    assert [leftover.path.name for leftover in find_leftovers(tmp_path)] == [".set.work"]


def test_a_full_disk_is_said_and_leaves_nothing(
    pushed: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.sets.hub.pull.save_rows", fill)
    with pytest.raises(UsageError, match="No space left on device; nothing was written; make room"):
        pull(tmp_path / "set")
    assert not (tmp_path / "set").exists()


# ---- what is no set as it was pushed


def change_manifest(repo: Repo, change: Callable[[dict[str, Any]], Any], *, seals: bool) -> None:
    manifest = json.loads(repo.files["manifest.json"])
    change(manifest)
    if seals:
        manifest["sha256"] = hash_manifest(manifest)
    repo.commit("main", {**repo.files, "manifest.json": json.dumps(manifest).encode()})


def change_rows(repo: Repo, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the rows and all that the manifest says of their file, as one who means harm would."""
    import hashlib

    sink = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(repo.files[ROWS_FILE]))), sink)
    content = sink.getvalue()
    repo.commit("main", {**repo.files, ROWS_FILE: content})
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change_manifest(repo, lambda manifest: manifest["files"].update({ROWS_FILE: entry}), seals=True)


def test_a_changed_manifest_is_refused(pushed: Repo, tmp_path: Path) -> None:
    change_manifest(pushed, lambda manifest: manifest["counts"].update(lines=1), seals=False)
    with pytest.raises(DataRefused, match=r"manifest.json was changed after it was pushed"):
        pull(tmp_path / "set")


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["counts"].update(rows_by_split={"../../x": 3}),
        lambda manifest: manifest["counts"].update(rows_by_split=3),
        lambda manifest: manifest.update(files=["a"]),
        lambda manifest: manifest.update(left_out={"columns": ["input_ids"], "files": []}),
        lambda manifest: manifest.pop("left_out"),
        lambda manifest: manifest.update(seal={}),
        lambda manifest: manifest["seal"].update(settings={"columns": "full"}),
        lambda manifest: manifest["seal"].update(tokenizer=[]),
        lambda manifest: manifest["counts"].update(tokens="many"),
        lambda manifest: manifest.update(config={"output": 3}),
        lambda manifest: manifest.update(digest="0" * 64),
    ],
)
def test_a_manifest_made_by_another_hand_is_refused(
    pushed: Repo, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    change_manifest(pushed, change, seals=True)
    with pytest.raises(DataRefused, match="pull team/rows: "):
        pull(tmp_path / "set")
    assert not (tmp_path / "set").exists()
    assert not (tmp_path.parent / "x").exists()


def test_a_page_and_a_picture_of_others_are_made_anew(pushed: Repo, tmp_path: Path) -> None:
    page = b"<html><script>fetch('http://elsewhere/')</script></html>"
    theirs = {"report.html": page, "lengths.svg": page}
    entries = {
        name: {"bytes": len(page), "sha256": hashlib.sha256(page).hexdigest()} for name in theirs
    }
    pushed.commit("main", {**pushed.files, **theirs})
    change_manifest(pushed, lambda found: found["files"].update(entries), seals=True)
    pulled = pull(tmp_path / "set")
    contents = contents_of(pulled.output)
    assert b"30" in contents["report.html"]
    assert not any(b"elsewhere" in content for content in contents.values())
    assert "lengths.svg" not in contents
    assert verify(pulled.output) == []


@pytest.mark.parametrize("rows", [-5, 10**12, "30", None])
def test_impossible_counts_are_refused(pushed: Repo, tmp_path: Path, rows: object) -> None:
    def count(manifest: dict[str, Any]) -> None:
        manifest["counts"].update(rows=rows, rows_by_split={"train": rows})

    change_manifest(pushed, count, seals=True)
    with pytest.raises(DataRefused, match=r"counts.*(expected a whole number|found \d+)"):
        pull(tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"7"])
def test_a_manifest_that_is_no_json_is_a_sentence(
    pushed: Repo, tmp_path: Path, content: bytes
) -> None:
    pushed.commit("main", {**pushed.files, "manifest.json": content})
    with pytest.raises(DataRefused, match="is no manifest of ours"):
        pull(tmp_path / "set")


def test_a_token_that_is_no_ascii_is_a_sentence(
    pushed: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_ü")
    with pytest.raises(UsageError, match="holds characters that no token has") as caught:
        pull(tmp_path / "set")
    assert "hf_ü" not in str(caught.value)


def set_column(name: str, values: pa.Array) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.slice(1), "counts 20 rows of train, found 19"),
        (lambda table: table.drop_columns(["weight"]), "weight"),
        (lambda table: table.drop_columns(["reason"]), "reason"),
        (
            lambda table: set_column("context_len", table.column("context_len").cast(pa.int64()))(
                table
            ),
            "column context_len is int64, expected int32",
        ),
        (
            lambda table: set_column("weight", pa.array([2.0] * len(table), pa.float32()))(table),
            "digest",
        ),
        (
            lambda table: set_column("id", pa.array(["x"] * len(table)))(table),
            "digest",
        ),
    ],
    ids=["fewer", "no number", "no text", "type", "weight", "id"],
)
def test_rows_of_another_hand_are_refused(
    pushed: Repo, tmp_path: Path, change: Callable[[pa.Table], pa.Table], words: str
) -> None:
    change_rows(pushed, change)
    with pytest.raises(DataRefused, match=words):
        pull(tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_file_that_is_no_parquet_is_refused(pushed: Repo, tmp_path: Path) -> None:
    entry = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    pushed.commit("main", {**pushed.files, ROWS_FILE: b"x"})
    change_manifest(pushed, lambda found: found["files"].update({ROWS_FILE: entry}), seals=True)
    with pytest.raises(DataRefused, match="not the set that its manifest says"):
        pull(tmp_path / "set")


@pytest.mark.parametrize("name", [ROWS_FILE, "rejects.jsonl"])
def test_a_changed_file_is_refused_by_its_name(pushed: Repo, tmp_path: Path, name: str) -> None:
    pushed.commit("main", {**pushed.files, name: pushed.files[name][:-1] + b"\xff"})
    with pytest.raises(DataRefused, match=f"{name} is not the file that was pushed"):
        pull(tmp_path / "set")


def test_a_missing_file_of_rows_is_refused(pushed: Repo, tmp_path: Path) -> None:
    kept = {name: content for name, content in pushed.files.items() if name != ROWS_FILE}
    pushed.commit("main", kept)
    with pytest.raises(DataRefused, match="found 0 files of train, not all of them"):
        pull(tmp_path / "set")


def test_a_missing_file_beside_the_rows_is_an_error(pushed: Repo, tmp_path: Path) -> None:
    kept = {name: content for name, content in pushed.files.items() if name != "rejects.jsonl"}
    pushed.commit("main", kept)
    with pytest.raises(HubFailed, match="answered 404"):
        pull(tmp_path / "set")


def test_code_beside_the_rows_is_neither_run_nor_fetched(pushed: Repo, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')".encode()
    more = {"rows.py": code, "data/train.pkl": code, "data/__init__.py": code}
    pushed.commit("main", {**pushed.files, **more})
    pull(tmp_path / "set")
    assert not mark.exists()
    assert not [path for path in (tmp_path / "set").rglob("*") if path.suffix in (".py", ".pkl")]


def test_what_others_made_is_no_set(hub: Hub, tmp_path: Path) -> None:
    hub.repos[REPO] = Repo(private=True)
    with pytest.raises(UsageError, match=r"no set of ours in config default; found none"):
        pull(tmp_path / "set")


def test_the_configs_that_are_there_are_named(pushed: Repo, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no set of ours in config qwen3; found default"):
        pull(tmp_path / "set", config_name="qwen3")


def test_a_repository_that_is_not_there_is_said(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pull team/rows: no such data set"):
        pull(tmp_path / "set")


def test_a_revision_that_is_not_there_is_said(pushed: Repo, tmp_path: Path) -> None:
    with pytest.raises(HubFailed, match=r"answered 404.*check the name and --revision"):
        pull(tmp_path / "set", revision="no-such")


# ---- faults


@pytest.mark.parametrize(
    ("method", "status"), [("GET", 500), ("GET", 503), ("GET", 0), ("HEAD", 500)]
)
def test_a_fault_that_passes_is_outlived(
    pushed: Repo, hub: Hub, made: Path, tmp_path: Path, method: str, status: int
) -> None:
    # 0: the connection is dropped, and the client goes on where it was.
    hub.faults.append(Fault(rf"{method} /datasets/{REPO}/resolve/.*parquet", status, times=2))
    pull(tmp_path / "set")
    assert hub.faults[0].times == 0
    assert_same_rows(made, tmp_path / "set")


def test_a_fault_that_stays_is_an_error_in_the_end(pushed: Repo, hub: Hub, tmp_path: Path) -> None:
    hub.faults.append(Fault(rf"GET /datasets/{REPO}/resolve/.*parquet", 500, times=10**6))
    with pytest.raises(HubFailed, match=r"answered 500: .* run the same command again"):
        pull(tmp_path / "set")
    assert hub.slept == [1, 2, 4, 8]


def test_the_client_waits_as_long_as_the_hub_asks(
    pushed: Repo, hub: Hub, made: Path, tmp_path: Path
) -> None:
    hub.faults.append(
        Fault(rf"GET /datasets/{REPO}/resolve/.*parquet", 429, {"Retry-After": "3"}, times=2)
    )
    pull(tmp_path / "set")
    assert hub.slept == [4.0, 4.0]
    assert_same_rows(made, tmp_path / "set")


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503, 0], ids=str)
@pytest.mark.parametrize("place", [r"GET /api/datasets", rf"\w+ /datasets/{REPO}/resolve"])
def test_every_answer_of_the_hub_is_an_error_without_the_token(
    pushed: Repo,
    hub: Hub,
    tmp_path: Path,
    status: int,
    place: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    hub.faults.append(Fault(place, status, message=f"not with {TOKEN}", times=10**6))
    assert main(["pull", REPO, str(tmp_path / "set")]) == 1
    said = capfd.readouterr()
    assert "context-frozen: pull team/rows: " in said.err
    assert TOKEN not in said.out + said.err + caplog.text
    assert not (tmp_path / "set").exists()


# ---- the command itself


def test_the_command_pushes_pulls_and_verifies(made: Path, tmp_path: Path) -> None:
    with serve_hub() as hub:
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
        }

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "pipeline.cli.command", *arguments],
                env={**os.environ, **settings},
                cwd=ROOT,
                capture_output=True,
                text=True,
            )

        output = str(tmp_path / "set")
        push = run("push", str(made), REPO, "--config_name", "qwen3")
        assert (push.returncode, push.stderr) == (0, "")
        digest = manifest_of(made)["digest"]
        assert push.stdout == (
            f"{REPO} (qwen3, main): pushed, private\n  30 rows, digest {digest}\n"
        )
        pull = run("pull", REPO, output, "--config_name", "qwen3")
        assert (pull.returncode, pull.stderr) == (0, "")
        assert pull.stdout == f"{output}: pulled and verified\n  30 rows, digest {digest}\n"
        assert run("verify", output).returncode == 0
    assert_same_rows(made, tmp_path / "set")
