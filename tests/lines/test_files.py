"""Which files an input names, in which order, under which names."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.errors import UnreadableFile, UsageError
from pipeline.lines.files import STDIN, SourceFile, find_files, hash_file, spool_streams


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with data files at two depths, and files beside them that are no data."""
    for name in (
        "b.jsonl",
        "a.jsonl.gz",
        "deep/er/c.jsonl.zst",
        "deep/D.NDJSON",
        "deep/state.json",
        "notes.txt",
        ".hidden.jsonl",
        ".git/e.jsonl",
    ):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "data"


def names(inputs: object) -> list[str]:
    return [file.name for file in find_files(inputs)]  # type: ignore[arg-type]


def test_a_folder_gives_its_data_files_at_any_depth_sorted_and_without_hidden_ones(folder: Path):
    assert names(str(folder)) == ["a.jsonl.gz", "b.jsonl", "deep/D.NDJSON", "deep/er/c.jsonl.zst"]


def test_a_single_file_is_called_by_its_base_name_whatever_its_suffix(folder: Path):
    assert names(str(folder / "deep/state.json")) == ["state.json"]
    assert names(folder / "deep/state.json") == ["state.json"]


def test_a_folder_with_one_file_still_gives_the_name_below_that_folder(folder: Path):
    assert names(str(folder / "deep/er")) == ["c.jsonl.zst"]
    (folder / "deep/D.NDJSON").unlink()
    assert names(str(folder / "deep")) == ["er/c.jsonl.zst"]


def test_several_inputs_are_named_below_their_deepest_common_folder(folder: Path):
    inputs = [str(folder / "deep"), str(folder / "b.jsonl")]
    assert names(inputs) == ["b.jsonl", "deep/D.NDJSON", "deep/er/c.jsonl.zst"]
    assert names([str(folder / "deep/er/c.jsonl.zst"), str(folder / "deep/D.NDJSON")]) == [
        "D.NDJSON",
        "er/c.jsonl.zst",
    ]


def test_the_order_is_the_paths_and_not_that_of_the_inputs(folder: Path):
    inputs = [str(folder / "b.jsonl"), str(folder / "a.jsonl.gz")]
    assert names(inputs) == names(inputs[::-1]) == ["a.jsonl.gz", "b.jsonl"]


def test_a_glob_takes_what_it_matches_and_searches_the_folders_it_matches(folder: Path):
    assert names(str(folder / "*.jsonl")) == ["b.jsonl"]
    assert names(str(folder / "deep/*.json")) == ["state.json"]
    assert names(str(folder / "de*")) == ["D.NDJSON", "er/c.jsonl.zst"]


def test_two_stars_cross_any_number_of_folders(folder: Path):
    assert names(str(folder / "**/*.jsonl*")) == ["a.jsonl.gz", "b.jsonl", "deep/er/c.jsonl.zst"]
    assert names(str(folder / "**/er/**/*.zst")) == ["c.jsonl.zst"]
    assert names(str(folder / "d*/**/*.json")) == ["state.json"]


def test_a_relative_glob_starts_in_the_working_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    assert names("**/*.NDJSON") == ["D.NDJSON"]
    assert names("../data/b.jsonl") == ["b.jsonl"]
    assert find_files("../data/b.jsonl")[0].path == folder / "b.jsonl"


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path):
    (tmp_path / "part[1].jsonl").touch()
    assert names(str(tmp_path / "part[1].jsonl")) == ["part[1].jsonl"]


def test_a_home_folder_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(folder))
    assert names("~/b.jsonl") == ["b.jsonl"]
    assert names("~")[0] == "a.jsonl.gz"


def test_the_same_file_counts_once_however_it_is_named(folder: Path):
    (folder / "z_latest.jsonl").symlink_to("b.jsonl")
    (folder / "z_linked").symlink_to("deep")
    plain = [str(folder / "b.jsonl"), f"{folder}/./b.jsonl", f"{folder}/deep/../b.jsonl"]
    assert names(plain) == ["b.jsonl"]
    assert names([str(folder), str(folder / "deep"), str(folder / "**/*.jsonl")]) == [
        "a.jsonl.gz",
        "b.jsonl",
        "deep/D.NDJSON",
        "deep/er/c.jsonl.zst",
    ]


def test_a_linked_folder_outside_is_searched(folder: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/far.jsonl").touch()
    (folder / "deep/link").symlink_to(tmp_path / "elsewhere")
    assert "deep/link/far.jsonl" in names(str(folder))
    assert names(str(folder / "**/far.jsonl")) == ["far.jsonl"]


def test_loops_of_links_end(folder: Path):
    # Twelve folders that all link to each other: following every path would take 12! steps.
    for i in range(12):
        (folder / f"loop{i}").mkdir()
        for j in range(12):
            (folder / f"loop{i}/to{j}").symlink_to(folder / f"loop{j}")
    (folder / "loop7/found.jsonl").touch()
    assert names(str(folder))[-1] == "loop7/found.jsonl"
    assert names(str(folder / "**/found.jsonl")) == ["found.jsonl"]


def test_a_broken_link_in_a_folder_is_found_and_then_unreadable(folder: Path):
    (folder / "gone.jsonl").symlink_to("nowhere")
    gone = next(file for file in find_files(str(folder)) if file.name == "gone.jsonl")
    with pytest.raises(UnreadableFile, match=r"gone.jsonl:.*No such file.*check the path"):
        hash_file(gone)


def test_a_file_name_that_is_not_utf8_becomes_text_that_is(tmp_path: Path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl")).touch()
    assert names(str(tmp_path)) == ["caf\\xe9.jsonl"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "no input: name a file"),
        ("", "input '': nothing there, looked in "),
        ("missing.jsonl", r"input 'missing.jsonl': nothing there, looked in /.*; name a file"),
        ("*.nothing", r"input '\*.nothing': nothing there, looked in "),
        ("**/*.nothing", r"input '\*\*/\*.nothing': nothing there"),
        ("nofolder/**/*.jsonl", "nothing there"),
        ("empty", r"input 'empty': nothing found in the folder, looked for \.jsonl, \.jsonl\.gz"),
        (["full.jsonl", "missing.jsonl"], "input 'missing.jsonl'"),
        ("s3://bucket/a.jsonl", "is an address, expected a path: download the data first"),
        ("https://me:secret@host/a.jsonl?key=secret", r"^https://host/a\.jsonl is an address"),
    ],
)
def test_an_input_that_leads_to_no_file_says_what_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: object, message: str
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").touch()
    (tmp_path / "full.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        names(inputs)


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_an_empty_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    list_folder = os.scandir

    def refuse_one(path: os.PathLike[str]) -> object:
        if str(path).endswith("er"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return list_folder(path)

    monkeypatch.setattr(os, "scandir", refuse_one)
    with pytest.raises(UsageError, match=r"cannot look into .*/deep/er: Permission denied"):
        names(str(folder))


def test_the_hash_covers_the_bytes_on_disk(folder: Path):
    file = find_files(str(folder / "a.jsonl.gz"))[0]
    assert hash_file(file) == hashlib.sha256(b"a.jsonl.gz").hexdigest()


def test_stdin_is_one_stream_with_a_fixed_name(folder: Path):
    stdin, other = find_files(["-", str(folder / "b.jsonl"), "-"])
    assert (stdin.path, stdin.name, stdin.is_stream) == (STDIN, "stdin", True)
    assert (other.name, other.is_stream) == ("b.jsonl", False)


def test_a_stream_is_not_hashed_before_it_is_spooled(folder: Path):
    with pytest.raises(UsageError, match=r"stdin can be read only once; .* spool_streams"):
        hash_file(find_files("-")[0])


def test_a_fifo_is_spooled_to_a_file_that_can_be_read_twice(tmp_path: Path):
    fifo = tmp_path / "pipe.jsonl"
    os.mkfifo(fifo)
    (tmp_path / "plain.jsonl").touch()
    files = find_files(str(tmp_path))
    assert [file.is_stream for file in files] == [True, False]
    writer = threading.Thread(target=fifo.write_bytes, args=[b"{}\n" * 100_000])
    writer.start()
    spooled = spool_streams(files, tmp_path / "scratch")
    writer.join()
    assert spooled[0].name == "pipe.jsonl"
    assert spooled[1] is files[1]
    assert spooled[0].path.parent == tmp_path / "scratch"
    expected = hashlib.sha256(b"{}\n" * 100_000).hexdigest()
    assert hash_file(spooled[0]) == hash_file(spooled[0]) == expected


def test_stdin_is_spooled_whole(tmp_path: Path, repository: Path):
    code = (
        "import os, sys; from pathlib import Path; from pipeline.lines.files import *;"
        "print(spool_streams(find_files('-'), Path(sys.argv[1]))[0].path);"
        "os.fstat(0)"  # fails if stdin was closed
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        input=b"one\ntwo",
        capture_output=True,
        cwd=repository,
        check=True,
    )
    assert Path(ended.stdout.decode().strip()).read_bytes() == b"one\ntwo"


def test_two_jobs_that_spool_into_one_folder_do_not_overwrite_each_other(tmp_path: Path):
    read_end, write_end = os.pipe()
    os.write(write_end, b"first")
    os.close(write_end)
    stream = SourceFile(Path(f"/dev/fd/{read_end}"), "pipe")
    (first,) = spool_streams([stream], tmp_path)
    (second,) = spool_streams([stream], tmp_path)
    os.close(read_end)
    assert (first.path.read_bytes(), second.path.read_bytes()) == (b"first", b"")
