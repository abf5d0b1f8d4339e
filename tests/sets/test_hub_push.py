"""Push: what goes to the Hub and what stays, what is refused, and one commit that is all or nothing."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from pipeline.cli.command import main
from pipeline.config import PrepareConfig
from pipeline.errors import ContextFrozenError, DataRefused, HubFailed, UsageError
from pipeline.job.prepare import prepare
from pipeline.sets import folder
from pipeline.sets.card import TAG
from pipeline.sets.hub.pull import PullChoice, pull_set
from pipeline.sets.hub.push import Pushed, push_set
from pipeline.sets.hub.push_rules import PushChoice
from tests.conftest import ROOT, write_lines
from tests.hub_server import TOKEN, Fault, Hub, Repo, hub_of_this_process

REPO = "team/rows"
SECRETS = ("reason-of-the-tests", "memory-of-the-tests", "reject-of-the-tests")
COMMIT = rf"POST /api/datasets/{REPO}/commit"
UPLOAD = r"PUT /lfs/"


def example(id_: str, continuation: str = "Yes.") -> dict[str, Any]:
    return {
        "id": id_,
        "messages": [{"role": "user", "content": f"Is {id_} there?"}],
        "continuation": continuation,
        "reason": SECRETS[0],
        "memories": [SECRETS[1]],
    }


def make_set(folder: Path, *rows: dict[str, Any] | str, **settings: Any) -> Path:
    folder.mkdir()
    config = PrepareConfig(
        input=(str(write_lines(folder / "logs.jsonl", rows)),),
        tokenizer=str(ROOT / "configs" / "tokenizer"),
        output=str(folder / "made"),
        num_proc=1,
        max_reject_rate=1.0,
        validation_fraction=0.3,
        **settings,
    )
    return prepare(config).output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of two splits with one reject, a licence and a report."""
    folder = tmp_path_factory.mktemp("push") / "home-of-the-tests"
    rows = [example(f"e{index}") for index in range(12)]
    return make_set(folder, *rows, SECRETS[2], license="mit", language="en")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another set, without a report."""
    folder = tmp_path_factory.mktemp("push") / "other"
    return make_set(folder, *(example(f"o{index}", "No.") for index in range(9)), report=False)


@pytest.fixture
def hub(tmp_path: Path, tokenizers_loaded_once: None) -> Iterator[Hub]:
    with hub_of_this_process(tmp_path / "cache") as hub:
        yield hub


def push(path: Path, repo: str = REPO, **choice: Any) -> Pushed:
    return push_set(str(path), repo, PushChoice(**choice))


def manifest_of(content: bytes | Path) -> dict[str, Any]:
    return json.loads(content.read_bytes() if isinstance(content, Path) else content)


def rows_of(path: Path) -> dict[str, list[Any]]:
    return {str(name): list(rows) for name, rows in datasets.load_from_disk(str(path)).items()}  # type: ignore[union-attr]


def load(repo: str = REPO, config_name: str = "default") -> dict[str, list[Any]]:
    loaded = datasets.load_dataset(repo, config_name, token=TOKEN)
    return {str(name): list(rows) for name, rows in loaded.items()}  # type: ignore[union-attr]


# ---- what goes where


def test_a_push_makes_a_private_repository_with_all_of_the_set(hub: Hub, made: Path) -> None:
    pushed = push(made)
    assert not pushed.was_there
    assert pushed.is_private
    repo = hub.repos[REPO]
    assert repo.private
    assert set(repo.files) - {".gitattributes"} == {
        "README.md",
        "data/train-00000-of-00001.parquet",
        "data/validation-00000-of-00001.parquet",
        *("examples.sha256", "lengths.svg", "manifest.json", "rejects.jsonl", "report.html"),
    }
    for name in ("examples.sha256", "lengths.svg", "rejects.jsonl", "report.html"):
        assert repo.files[name] == (made / name).read_bytes()
    assert load() == rows_of(made)


def test_a_push_is_one_commit(hub: Hub, made: Path, other: Path) -> None:
    push(made)
    assert len(hub.repos[REPO].commits) == 2
    push(other, overwrite=True)
    assert len(hub.repos[REPO].commits) == 3


def test_the_manifest_there_says_what_the_one_here_says(hub: Hub, made: Path) -> None:
    push(made)
    there = manifest_of(hub.repos[REPO].files["manifest.json"])
    here = manifest_of(made / "manifest.json")
    for name in ("digest", "seal", "counts", "config"):
        assert there[name] == here[name]
    for name, entry in there["files"].items():
        assert entry["bytes"] == len(hub.repos[REPO].files[name])


def test_the_card_on_the_hub_has_the_numbers_of_what_was_pushed(hub: Hub, made: Path) -> None:
    push(made)
    card = DatasetCard(hub.repos[REPO].files["README.md"].decode())
    data, rows = card.data.to_dict(), load()
    total = sum(map(len, rows.values()))
    tokens = sum(row["total_len"] for split in rows.values() for row in split)
    assert (
        f"| rows | {total} ({len(rows['train'])} train, {len(rows['validation'])} validation) |"
        in (card.text)
    )
    assert f"| tokens | {tokens:,}: " in card.text
    assert manifest_of(made / "manifest.json")["digest"] in card.text
    assert {split["name"]: split["num_examples"] for split in data["dataset_info"]["splits"]} == {
        name: len(split) for name, split in rows.items()
    }
    assert data["license"] == "mit"
    assert data["language"] == ["en"]
    assert TAG in data["tags"]


def texts_of(repo: Repo) -> str:
    """Return all that a repository ever held, Parquet as its values."""
    texts: list[str] = []
    for files in repo.commits.values():
        for name, content in files.items():
            if name.endswith(".parquet"):
                table = pq.read_table(io.BytesIO(content))
                texts.append(f"{table.column_names} {table.to_pylist()}")
            texts.append(content.decode("utf-8", "replace"))
    return "\n".join(texts)


def test_what_is_public_does_not_say_where_rows_came_from(hub: Hub, made: Path) -> None:
    assert not push(made, public=True).is_private
    repo = hub.repos[REPO]
    assert not repo.private
    assert not {"rejects.jsonl", "examples.sha256"} & set(repo.files)
    assert {"report.html", "lengths.svg"} <= set(repo.files)
    said = texts_of(repo)
    for secret in (*SECRETS, "home-of-the-tests", "logs.jsonl:", "Is e3 there?"):
        assert secret not in said
    assert set(load()["train"][0]) & {"reason", "memories", "source"} == set()
    there = manifest_of(repo.files["manifest.json"])
    assert there["left_out"] == {
        "columns": ["memories", "reason", "source"],
        "files": ["examples.sha256", "rejects.jsonl"],
    }
    assert there["config"]["input"] == ["logs.jsonl"]


def test_with_provenance_the_public_set_is_whole(hub: Hub, made: Path) -> None:
    push(made, public=True, with_provenance=True)
    assert not hub.repos[REPO].private
    assert load() == rows_of(made)
    said = texts_of(hub.repos[REPO])
    assert all(secret in said for secret in SECRETS)


def test_a_set_of_numbers_alone_can_be_public(hub: Hub, tmp_path: Path) -> None:
    numbers = make_set(tmp_path / "n", *(example(f"e{at}") for at in range(9)), columns="train")
    push(numbers, public=True)
    assert load() == rows_of(numbers)
    assert manifest_of(hub.repos[REPO].files["manifest.json"])["left_out"]["columns"] == []


def test_a_split_without_rows_is_neither_saved_nor_pushed(hub: Hub, tmp_path: Path) -> None:
    # `load_dataset` fails where a split has no rows.
    one = make_set(tmp_path / "one", example("e0"))
    assert list(map(len, rows_of(one).values())) == [1]
    push(one)
    assert sum(map(len, load().values())) == 1
    pulled = pull_set(REPO, str(tmp_path / "set"), PullChoice()).output
    assert rows_of(pulled) == rows_of(one)


def test_a_set_without_rows_is_not_pushed(hub: Hub, tmp_path: Path) -> None:
    empty = make_set(tmp_path / "none", "no example")
    with pytest.raises(UsageError, match="it has no rows"):
        push(empty)
    assert not hub.requests


def test_a_public_repository_gets_nothing_unless_that_is_meant(hub: Hub, made: Path) -> None:
    hub.repos[REPO] = Repo(private=False)
    with pytest.raises(UsageError, match=r"the repository is public; --public pushes what may be"):
        push(made)
    assert set(hub.repos[REPO].files) == {".gitattributes"}


def test_a_repository_that_another_made_meanwhile_is_looked_at_too(hub: Hub, made: Path) -> None:
    def create() -> None:
        hub.repos[REPO] = Repo(private=False)

    hub.faults.append(Fault(r"POST /api/repos/create", meanwhile=create))
    with pytest.raises(UsageError, match="the repository is public"):
        push(made)
    assert set(hub.repos[REPO].files) == {".gitattributes"}


def test_a_private_repository_stays_private(
    hub: Hub, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repos[REPO] = Repo(private=True)
    assert main(["push", str(made), REPO, "--public"]) == 0
    assert hub.repos[REPO].private
    assert "rejects.jsonl" not in hub.repos[REPO].files
    assert "stays private: change that in its settings" in capsys.readouterr().out


# ---- again, and others


def test_a_second_push_of_the_same_set_sends_nothing(
    hub: Hub, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(made)
    before = dict(hub.repos[REPO].commits)
    assert push(made).was_there
    assert main(["push", str(made), REPO]) == 0
    assert "is there already, same seal and digest" in capsys.readouterr().out
    assert hub.repos[REPO].commits == before


def test_another_set_under_the_same_name_is_refused(hub: Hub, made: Path, other: Path) -> None:
    push(made)
    before = hub.repos[REPO].files
    with pytest.raises(UsageError, match=r"is another set \(digest there .* here .*; seal there"):
        push(other)
    assert hub.repos[REPO].files == before


def test_other_columns_under_the_same_name_are_refused(hub: Hub, made: Path) -> None:
    hub.repos[REPO] = Repo(private=True)
    push(made)
    with pytest.raises(UsageError, match=r"columns left out there none, here memories, reason"):
        push(made, public=True)


def test_overwrite_replaces_the_set_and_all_that_stood_beside_it(
    hub: Hub, made: Path, other: Path
) -> None:
    push(made)
    push(other, overwrite=True)
    assert load() == rows_of(other)
    files = hub.repos[REPO].files
    assert not {"report.html", "lengths.svg"} & set(files)
    card = files["README.md"].decode()
    assert manifest_of(made / "manifest.json")["digest"] not in card
    assert card.count("<!-- context-frozen default ") == 1


def test_overwrite_with_fewer_columns_can_be_loaded(hub: Hub, made: Path) -> None:
    # The features of the old columns in the card would make `load_dataset` fail.
    hub.repos[REPO] = Repo(private=True)
    push(made)
    push(made, public=True, overwrite=True)
    assert "reason" not in load()["train"][0]


def test_several_sets_live_in_one_repository(hub: Hub, made: Path, other: Path) -> None:
    push(made)
    push(other, config_name="qwen3")
    push(made, config_name="llama")
    assert load() == load(config_name="llama") == rows_of(made)
    assert load(config_name="qwen3") == rows_of(other)
    card = hub.repos[REPO].files["README.md"].decode()
    assert [
        card.count(f"<!-- context-frozen {name} ") for name in ("default", "qwen3", "llama")
    ] == [
        1,
        1,
        1,
    ]
    for path in (made, other):
        assert manifest_of(path / "manifest.json")["digest"] in card
    assert push(other, config_name="qwen3").was_there


@pytest.mark.parametrize("name", ["data", "train", "manifest.json", "a/b", "", "../x", "-x", "a b"])
def test_a_name_that_no_config_can_have_is_refused(hub: Hub, made: Path, name: str) -> None:
    with pytest.raises(UsageError, match="config_name: found"):
        push(made, config_name=name)
    assert not hub.requests


@pytest.mark.parametrize("repo", ["a/b/c", "team/ro ws", "--x/y"])
def test_a_name_that_no_repository_can_have_is_refused(hub: Hub, made: Path, repo: str) -> None:
    with pytest.raises(UsageError, match="expected a repository such as ORG/NAME"):
        push(made, repo)


# ---- repositories of others


def foreign_repo(**files: str | bytes) -> Repo:
    repo = Repo(private=True)
    encoded = {
        name: text if isinstance(text, bytes) else text.encode() for name, text in files.items()
    }
    repo.commit("main", encoded)
    return repo


FOREIGN_CARD = """\
---
license: cc0-1.0
tags:
- theirs
configs:
- config_name: default
  data_files: theirs/*
---
# Theirs

Words of others.
"""


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"data/train-00000-of-00001.parquet": "x"}, "config default is there and is not a set of"),
        (
            {"README.md": FOREIGN_CARD, "theirs/a.parquet": "x"},
            "config default is there and is not a",
        ),
        ({"rows.jsonl": "{}"}, r"it holds files of others \(rows.jsonl\)"),
        ({"manifest.json": "{}"}, r"it holds files of others \(manifest.json\)"),
    ],
)
def test_data_of_others_are_not_touched(
    hub: Hub, made: Path, files: dict[str, str], words: str
) -> None:
    hub.repos[REPO] = foreign_repo(**files)
    before = hub.repos[REPO].files
    with pytest.raises(UsageError, match=words):
        push(made)
    assert hub.repos[REPO].files == before


def test_a_new_config_leaves_data_and_words_of_others(hub: Hub, made: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": ["theirs"]}), sink)
    files = {"README.md": FOREIGN_CARD, "theirs/rows.parquet": sink.getvalue()}
    hub.repos[REPO] = foreign_repo(**files)
    push(made, config_name="qwen3")
    card = hub.repos[REPO].files["README.md"].decode()
    assert "# Theirs\n\nWords of others.\n" in card
    assert load(config_name="qwen3") == rows_of(made)
    assert load()["train"] == [{"text": "theirs"}]


def test_data_in_another_format_have_no_config_of_ours_beside_them(hub: Hub, made: Path) -> None:
    # `load_dataset` would read our Parquet files as JSON.
    hub.repos[REPO] = foreign_repo(**{"README.md": FOREIGN_CARD, "theirs/rows.jsonl": "{}"})
    with pytest.raises(UsageError, match=r"another format \(theirs/rows.jsonl\).* another REPO"):
        push(made, config_name="qwen3")


def test_overwrite_in_a_repository_of_others_keeps_their_words(hub: Hub, made: Path) -> None:
    hub.repos[REPO] = foreign_repo(**{"README.md": FOREIGN_CARD, "data/train.parquet": "x"})
    push(made, overwrite=True)
    assert "data/train.parquet" not in hub.repos[REPO].files
    assert "# Theirs\n\nWords of others.\n" in hub.repos[REPO].files["README.md"].decode()
    assert load() == rows_of(made)


def test_a_repository_with_words_alone_is_filled(hub: Hub, made: Path) -> None:
    hub.repos[REPO] = foreign_repo(**{"README.md": "# To come\n", "LICENSE": "x"})
    push(made)
    assert "# To come\n" in hub.repos[REPO].files["README.md"].decode()
    assert load() == rows_of(made)


def test_a_readme_that_cannot_be_read_is_refused(hub: Hub, made: Path) -> None:
    hub.repos[REPO] = foreign_repo(**{"README.md": "---\na: [\n---\n"})
    with pytest.raises(UsageError, match=r"README.md of the repository: .* mend it there first"):
        push(made)


# ---- sets that may not go


def test_a_damaged_set_is_not_pushed(hub: Hub, made: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(made, tmp_path / "copy")
    (copy / "rejects.jsonl").write_text("changed")
    with pytest.raises(DataRefused, match=r"rejects.jsonl: expected .* nothing was pushed"):
        push(copy)
    assert not hub.requests


def test_without_a_set_nothing_is_pushed(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no manifest.json there"):
        push(tmp_path)


# ---- branches and pull requests


def test_a_pull_request_holds_the_whole_push(
    hub: Hub, made: Path, other: Path, tmp_path: Path
) -> None:
    push(made)
    before = hub.repos[REPO].files
    pushed = push(other, config_name="new", create_pr=True)
    assert pushed.revision == "refs/pr/1"
    assert hub.repos[REPO].files == before
    assert set(hub.repos[REPO].branches) == {"main", "refs/pr/1"}
    choice = PullChoice(config_name="new", revision="refs/pr/1")
    assert rows_of(pull_set(REPO, str(tmp_path / "set"), choice).output) == rows_of(other)


def test_a_pull_request_needs_a_repository(hub: Hub, made: Path) -> None:
    with pytest.raises(UsageError, match="create_pr: team/rows is not there"):
        push(made, create_pr=True)
    assert not hub.repos


def test_a_branch_is_made_where_it_is_not_there(hub: Hub, made: Path) -> None:
    hub.repos[REPO] = Repo(private=True)
    before = hub.repos[REPO].files
    assert push(made, revision="trial").revision == "trial"
    assert hub.repos[REPO].files == before
    assert push(made, revision="trial").was_there
    assert not push(made).was_there


def test_a_branch_is_made_also_where_the_main_one_has_the_set(hub: Hub, made: Path) -> None:
    push(made)
    assert push(made, revision="trial").was_there
    assert hub.repos[REPO].branches["trial"] == hub.repos[REPO].branches["main"]


def test_a_branch_begins_where_it_was_looked_at(hub: Hub, made: Path) -> None:
    repo = hub.repos[REPO] = Repo(private=True)
    before = repo.branches["main"]

    def add_words() -> None:
        repo.commit("main", {**repo.files, "LICENSE": b"x"})

    hub.faults.append(Fault(rf"POST /api/datasets/{REPO}/branch", meanwhile=add_words))
    push(made, revision="trial")
    trial = repo.commits[repo.branches["trial"]]
    assert "manifest.json" in trial
    assert "LICENSE" not in trial
    assert repo.branches["main"] != before


def test_a_pull_request_is_pushed_to_again_and_is_not_made_up(
    hub: Hub, made: Path, other: Path
) -> None:
    hub.repos[REPO] = Repo(private=True)
    with pytest.raises(HubFailed, match="answered 404"):
        push(made, revision="refs/pr/1")
    push(made, create_pr=True)
    assert push(made, revision="refs/pr/1").was_there
    assert push(other, revision="refs/pr/1", overwrite=True).revision == "refs/pr/1"
    assert set(hub.repos[REPO].branches) == {"main", "refs/pr/1"}


# ---- faults


def test_a_push_that_stops_at_any_request_leaves_what_was_there(
    hub: Hub, made: Path, other: Path
) -> None:
    push(made)
    before = dict(hub.repos[REPO].branches)
    asked = len(hub.requests)
    for after in range(asked):
        # A status that the client does not try again.
        hub.faults[:] = [Fault(r"", 418, times=99, after=after)]
        with pytest.raises(HubFailed):
            push(other, overwrite=True)
        assert hub.repos[REPO].branches == before
        if hub.count(COMMIT) == 2:
            break
    else:
        pytest.fail("no push came as far as its commit")
    hub.faults.clear()
    hub.requests.clear()
    push(other, overwrite=True)
    assert load() == rows_of(other)
    # What the stopped ones had sent is not sent again.
    assert hub.count(UPLOAD) == 0


def test_a_push_that_is_killed_leaves_what_was_there(hub: Hub, made: Path, other: Path) -> None:
    push(made)
    before = dict(hub.repos[REPO].branches)
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "pipeline.cli.command", "push", str(other), REPO]
    process = subprocess.Popen(
        [*command, "--overwrite"], env={**os.environ, **settings}, cwd=ROOT, stderr=subprocess.PIPE
    )
    hub.faults.append(Fault(UPLOAD, after=1, meanwhile=process.kill))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert hub.repos[REPO].branches == before
    push(other, overwrite=True)
    assert load() == rows_of(other)


@pytest.mark.parametrize("place", [UPLOAD, COMMIT])
def test_what_another_pushed_meanwhile_is_not_overwritten(
    hub: Hub, made: Path, other: Path, place: str
) -> None:
    push(made)
    repo = hub.repos[REPO]

    def add_words() -> None:
        repo.commit("main", {**repo.files, "LICENSE": b"x"})

    hub.faults.append(Fault(place, meanwhile=add_words))
    with pytest.raises(HubFailed, match=r"the repository changed meanwhile; run the same command"):
        push(other, overwrite=True)
    assert repo.files["LICENSE"] == b"x"
    assert load() == rows_of(made)
    push(other, overwrite=True)
    assert repo.files["LICENSE"] == b"x"
    assert load() == rows_of(other)


def test_a_set_goes_there_whole_whatever_the_repository_ignores(hub: Hub, made: Path) -> None:
    hub.repos[REPO] = foreign_repo(**{".gitignore": "data/\nmanifest.json\n"})
    push(made)
    assert load() == rows_of(made)
    assert "manifest.json" in hub.repos[REPO].files


def test_one_file_of_rows_at_a_time_lies_on_the_disk(
    hub: Hub, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "FILE_BYTES", 500)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lying: list[int] = []

    def look() -> None:
        lying.append(len(list(tmp_path.glob("*/*.parquet"))))

    hub.faults.append(Fault(UPLOAD, times=99, meanwhile=look))
    push(made)
    assert len(lying) > 2
    assert set(lying) == {1}
    assert load() == rows_of(made)
    assert not list(tmp_path.glob("context-frozen-push-*"))


@pytest.mark.parametrize("status", [500, 502, 503, 504, 0], ids=str)
def test_a_fault_that_passes_is_outlived(hub: Hub, made: Path, status: int) -> None:
    # 0: the connection is dropped in the middle of the upload.
    hub.faults.append(Fault(UPLOAD, status, times=2))
    push(made)
    assert hub.slept == [1.0, 2.0]
    assert load() == rows_of(made)


def test_the_client_waits_as_long_as_the_hub_asks(hub: Hub, made: Path) -> None:
    hub.faults.append(Fault(UPLOAD, 429, {"Retry-After": "7"}))
    push(made)
    assert hub.slept == [8.0]


def test_the_client_gives_up_in_the_end(hub: Hub, made: Path) -> None:
    hub.faults.append(Fault(UPLOAD, 429, {"Retry-After": "7"}, times=10**6))
    with pytest.raises(HubFailed, match="answered 429"):
        push(made)
    assert hub.slept == [8.0] * 5


ANSWERS = {
    401: "log in with `hf auth login`, or set HF_TOKEN",
    403: "the token may not do that there",
    409: "another push is at work there",
    412: "the repository changed meanwhile",
    429: "the Hub asks to wait; later, run the same command again",
    500: "run the same command again",
    503: "run the same command again",
    0: "cannot be reached or dropped the connection",
    418: "see what the Hub says",
}
PLACES = {
    "look": r"GET /api/datasets/",
    "create": r"POST /api/repos/create",
    "card": COMMIT,
    "mode": r"POST /api/datasets/team/rows/preupload",
    "batch": r"POST /datasets/team/rows.git/info",
    "upload": UPLOAD,
}


@pytest.mark.parametrize(
    ("status", "place"),
    # 409 of a repository that was made meanwhile is no fault.
    [
        (status, place)
        for status in ANSWERS
        for place in PLACES
        if (status, place) != (409, "create")
    ],
)
def test_every_answer_of_the_hub_is_an_error_with_a_way_out_and_without_the_token(
    hub: Hub,
    other: Path,
    status: int,
    place: str,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    # A server that says back what it was sent.
    message = f"not with Bearer {TOKEN}"
    hub.faults.append(Fault(PLACES[place], status, message=message, times=10**6))
    assert main(["push", str(other), REPO]) == 1
    said = capfd.readouterr()
    assert ANSWERS[status] in said.err
    assert "push to team/rows" in said.err
    assert TOKEN not in said.out + said.err + caplog.text


def test_the_token_is_in_nothing_that_was_sent_or_written(
    hub: Hub, made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(made), REPO, "--json"]) == 0
    assert main(["pull", REPO, str(tmp_path / "set"), "--json"]) == 0
    said = capfd.readouterr()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert TOKEN not in said.out + said.err + texts_of(hub.repos[REPO])
    assert TOKEN.encode() not in written


def test_a_wrong_token_is_told_apart_from_a_missing_repository(
    hub: Hub, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubFailed, match=r"answered 401: .*log in with `hf auth login`") as caught:
        push(made)
    assert "hf_wrong" not in str(caught.value)


def test_offline_nothing_is_tried(hub: Hub, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    with pytest.raises(HubFailed, match="HF_HUB_OFFLINE is set; unset it"):
        push(made)
    assert not hub.requests
    close_session()


def test_an_error_of_another_origin_passes_unchanged(
    hub: Hub, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(FileNotFoundError) as caught:
        push(made)
    assert not isinstance(caught.value, ContextFrozenError)


def test_what_was_done_can_be_had_as_json(
    hub: Hub, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(made), REPO, "--config_name", "qwen3", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    manifest = manifest_of(made / "manifest.json")
    assert figures == {
        "repo": REPO,
        "config_name": "qwen3",
        "revision": "main",
        "private": True,
        "was_there": False,
        "digest": manifest["digest"],
        "rows": manifest["counts"]["rows"],
        "left_out": {"columns": [], "files": []},
    }
