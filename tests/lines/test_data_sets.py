"""A saved data set, or one on the Hub, stands for the files that it is kept in."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UsageError
from pipeline.lines.data_sets import expand_data_sets
from pipeline.lines.files import find_files
from pipeline.lines.json_text import parse_line
from tests.conftest import read_input

ROWS = [{"prompt": f"{index}", "completion": "c"} for index in range(7)]


def rows_in(paths: list[str]) -> list[dict[str, Any]]:
    return [parse_line(text) for text in read_input(find_files(paths)).texts]


# ---- on disk


def test_inputs_that_name_no_data_set_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    inputs = [str(tmp_path), str(tmp_path / "a.jsonl"), "more/*.parquet", "-", "not there"]
    assert expand_data_sets(inputs) == inputs


def test_a_saved_data_set_is_its_files_in_order(tmp_path: Path) -> None:
    saved = tmp_path / "set"
    datasets.Dataset.from_list(ROWS).save_to_disk(str(saved), num_shards=3)
    paths = expand_data_sets([str(saved)])
    assert [Path(path).name for path in paths] == [
        f"data-0000{index}-of-00003.arrow" for index in range(3)
    ]
    assert rows_in(paths) == ROWS


def test_of_several_saved_splits_train_is_taken_and_said_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train, test = datasets.Dataset.from_list(ROWS[:4]), datasets.Dataset.from_list(ROWS[4:])
    datasets.DatasetDict({"test": test, "train": train}).save_to_disk(str(tmp_path / "set"))
    with caplog.at_level("INFO", logger="pipeline.lines.data_sets"):
        assert rows_in(expand_data_sets([str(tmp_path / "set")])) == ROWS[:4]
    assert "the split train of" in caplog.text
    other = expand_data_sets([str(tmp_path / "set" / "test")])
    assert rows_in(other) == ROWS[4:]


def test_the_only_split_is_taken_whatever_its_name(tmp_path: Path) -> None:
    made = datasets.DatasetDict({"extra": datasets.Dataset.from_list(ROWS)})
    made.save_to_disk(str(tmp_path / "set"))
    assert rows_in(expand_data_sets([str(tmp_path / "set")])) == ROWS


def test_without_a_split_train_among_several_one_must_be_named(tmp_path: Path) -> None:
    part = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"a": part, "b": part}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(UsageError, match=r"no split train among a, b; name a split's own folder"):
        expand_data_sets([str(tmp_path / "set")])


def test_a_saved_data_set_whose_state_is_broken_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(UsageError, match=r"state\.json.*save it again"):
        expand_data_sets([str(tmp_path)])


# ---- on the Hub


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


class _Hub(http.server.BaseHTTPRequestHandler):
    """The few routes of the Hub that reading one data set needs."""

    repo = "team/logs"
    commit = "a" * 40
    files: dict[str, bytes]

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        at_file, at_api = f"/datasets/{self.repo}/resolve/", f"/api/datasets/{self.repo}"
        if path.startswith(at_file):
            name = path.removeprefix(at_file).partition("/")[2]
            if name not in self.files:
                return self.answer({}, 404, {"X-Error-Code": "EntryNotFound"})
            tag = hashlib.sha1(self.files[name]).hexdigest()
            return self.answer(self.files[name], headers={"ETag": f'"{tag}"'})
        if path.startswith(f"{at_api}/tree/"):
            folder = path.removeprefix(f"{at_api}/tree/").partition("/")[2]
            return self.answer(self.entries_below(folder))
        if path.startswith(at_api):
            names = [{"rfilename": name} for name in self.files]
            return self.answer({"id": self.repo, "sha": self.commit, "siblings": names})
        return self.answer({}, 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        is_json = "json" in self.headers["Content-Type"]
        paths = (json.loads(body) if is_json else urllib.parse.parse_qs(body))["paths"]
        known = [entry for entry in self.entries_below("") if entry["path"] in paths]
        self.answer(known)

    def entries_below(self, folder: str) -> list[dict[str, Any]]:
        inside = [name for name in self.files if not folder or name.startswith(f"{folder}/")]
        folders = {name.rpartition("/")[0] for name in inside} - {"", folder}
        files = [
            {"type": "file", "path": name, "size": len(self.files[name]), "oid": "c" * 40}
            for name in inside
        ]
        return files + [{"type": "directory", "path": name, "oid": "d" * 40} for name in folders]

    def answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"X-Repo-Commit": self.commit, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


Expand = Callable[..., list[Any]]

_ASK = """
import json, sys
from pipeline.lines.data_sets import expand_data_sets
from pipeline.errors import UsageError
answers = []
for text in sys.argv[1:]:
    try:
        answers.append(expand_data_sets([text]))
    except UsageError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


@pytest.fixture
def ask_hub(tmp_path: Path, repository: Path) -> Iterator[Expand]:
    """Return a function that expands addresses, in a process of its own, on a Hub with given files."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def ask(files: dict[str, bytes] | None, *addresses: str) -> list[Any]:
        port = 9  # where nothing listens
        if files is not None:
            handler = type("Hub", (_Hub,), {"files": files})
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            servers.append(server)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            port = server.server_port
        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{port}",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
        }
        command = [sys.executable, "-c", _ASK, *addresses]
        done = subprocess.run(
            command, env={**os.environ, **settings}, cwd=repository, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    yield ask
    for server in servers:
        server.shutdown()
        server.server_close()


FILES = {
    "data/train-00000-of-00002.parquet": as_parquet(ROWS[:2]),
    "data/train-00001-of-00002.parquet": as_parquet(ROWS[2:4]),
    "data/test-00000-of-00001.parquet": as_parquet(ROWS[4:]),
    "raw/logs.jsonl": b'{"prompt": "2024-03-01", "completion": "42"}\n',
    "raw/notes.csv": b"a,b\n",
}


def test_addresses_on_the_hub_are_files_in_its_cache(ask_hub: Expand) -> None:
    address = "hf://datasets/team/logs"
    whole, file, folder, glob = ask_hub(
        FILES,
        address,
        f"{address}@{_Hub.commit}/raw/logs.jsonl",
        f"{address}/raw",
        f"{address}/data/test-*.parquet",
    )
    assert rows_in(whole) == ROWS[:4]
    assert rows_in(file) == [{"prompt": "2024-03-01", "completion": "42"}]
    assert [Path(path).name for path in folder] == ["logs.jsonl"]
    assert rows_in(glob) == ROWS[4:]


def test_the_card_of_a_data_set_says_which_files_train_is(ask_hub: Expand, tmp_path: Path) -> None:
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: raw/*.jsonl\n---\n"
    (paths,) = ask_hub({**FILES, "README.md": card.encode()}, "hf://datasets/team/logs")
    assert [Path(path).name for path in paths] == ["logs.jsonl"]


def test_what_the_hub_does_not_have_or_cannot_say_exactly_is_a_usage_error(ask_hub: Expand) -> None:
    missing, model, table = ask_hub(
        FILES,
        "hf://datasets/team/other",
        "hf://team/logs",
        "hf://datasets/team/logs/raw/notes.csv",
    )
    assert "hf://datasets/team/other" in missing
    assert "HF_TOKEN" in missing
    assert "expected hf://datasets/ORG/NAME" in model
    assert "notes.csv" in table
    assert "expected Parquet, Arrow or JSONL" in table


def test_a_hub_that_does_not_answer_is_a_usage_error(ask_hub: Expand) -> None:
    (answer,) = ask_hub(None, "hf://datasets/team/logs")
    assert "can reach" in answer
