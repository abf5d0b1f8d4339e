"""Sets on an object store: written with their manifest last, read back whole or not at all."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from pipeline import load, prepare
from pipeline.cli.command import main
from pipeline.config import PrepareConfig
from pipeline.errors import SealMismatch, StoreFailed, UsageError
from pipeline.job.prepare import Prepared
from pipeline.sets.copies import find_folder
from pipeline.sets.load import verify
from pipeline.sets.place import MANIFEST
from pipeline.sets.store import SetStore, is_address
from pipeline.sets.store_names import name_object, tag_of
from tests.conftest import ROOT, write_lines

ROWS = [{"id": f"e{n}", "context": f"{n} and 1", "continuation": f"{n + 1}"} for n in range(5)]
PrepareAt = Callable[..., Prepared]
ADDRESS = "s3://bucket/sets/one"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    moto = pytest.importorskip("moto.server", reason="moto is not installed (extra dev)")
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra s3)")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def files(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The store, a bucket in it, and this process as a user who has credentials for it."""
    import boto3
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "a-secret-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    boto3.client("s3").create_bucket(Bucket="bucket")
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    if store.exists("bucket/sets"):
        store.rm("bucket/sets", recursive=True)
    yield store
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def prepare_at(files: Any, tmp_path: Path, make_config: Callable[..., PrepareConfig]) -> PrepareAt:
    """Return a function that prepares rows to an address or a folder."""

    def run(address: str, rows: Any = ROWS, **settings: Any) -> Prepared:
        source = write_lines(tmp_path / "in.jsonl", rows)
        return prepare(make_config(source, output=address, **settings))

    return run


def test_a_set_on_a_store_is_the_one_that_a_folder_gets(
    files: Any, tmp_path: Path, prepare_at: PrepareAt
) -> None:
    there = prepare_at(ADDRESS)
    here = prepare_at(str(tmp_path / "here"))
    assert there.output == ADDRESS
    assert there.digest == here.digest
    assert load(ADDRESS)["train"][:] == load(str(tmp_path / "here"))["train"][:]
    assert verify(ADDRESS) == []
    names = {name.removeprefix("bucket/sets/one/") for name in files.find("bucket/sets/one")}
    tag = tag_of(there.manifest)
    views = {"dataset_dict.json", "train/state.json", "train/dataset_info.json"}
    assert names == {
        MANIFEST,
        *views,
        *(name_object(name, tag) for name in there.manifest["files"]),
    }


def test_datasets_opens_a_set_on_a_store_at_its_address(
    files: Any, tmp_path: Path, prepare_at: PrepareAt
) -> None:
    made = prepare_at(ADDRESS, validation_fraction=0.5)
    rows = open_with_datasets()
    assert {name: len(each) for name, each in rows.items()} == made.counts["rows_by_split"]
    prepare_at(ADDRESS, ROWS[:3], overwrite=True)
    assert open_with_datasets()["train"]["id"][:] == ["e0", "e1", "e2"]


def test_a_folder_that_was_copied_to_a_store_is_read_and_replaced(
    files: Any, tmp_path: Path, prepare_at: PrepareAt
) -> None:
    here = prepare_at(str(tmp_path / "here"))
    for name in (*here.manifest["files"], MANIFEST):
        files.put_file(str(tmp_path / "here" / name), f"bucket/sets/one/{name}")
    assert verify(ADDRESS) == []
    assert prepare_at(ADDRESS).done == "unchanged"
    assert prepare_at(ADDRESS, ROWS[:3], overwrite=True).done == "replaced"
    assert verify(ADDRESS) == []
    assert "bucket/sets/one/README.md" not in files.find("bucket/sets/one")


def test_nothing_of_a_job_stays_on_this_machine(
    files: Any, tmp_path: Path, prepare_at: PrepareAt
) -> None:
    prepare_at(ADDRESS)
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert left == []


def test_a_second_run_of_the_same_seal_writes_nothing(
    files: Any, tmp_path: Path, prepare_at: PrepareAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_at(ADDRESS)
    monkeypatch.setattr(SetStore, "put", None)
    assert prepare_at(ADDRESS).was_ready


def test_another_set_takes_the_place_and_leaves_no_file_of_the_old(
    files: Any, tmp_path: Path, prepare_at: PrepareAt
) -> None:
    prepare_at(ADDRESS, validation_fraction=0.5)
    assert files.exists("bucket/sets/one/validation")
    with pytest.raises(
        UsageError, match=r"did not make: seal\.input\[0\]\.sha256 is .*--overwrite"
    ):
        prepare_at(ADDRESS, ROWS[:3], validation_fraction=0.5)
    assert verify(ADDRESS) == []
    files.pipe_file("bucket/sets/one/notes.txt", b"theirs")
    made = prepare_at(ADDRESS, ROWS[:3], overwrite=True)
    assert made.describe() == "replaced 5 rows by 3"
    assert made.rows_before == 5
    files.invalidate_cache()
    assert not files.find("bucket/sets/one/validation")
    assert verify(ADDRESS) == []


def open_with_datasets() -> datasets.DatasetDict:
    """Open the set as `datasets` does in a new process: it copies a folder into that of an earlier copy."""
    shutil.rmtree(datasets.Dataset._build_local_temp_path("bucket"), ignore_errors=True)
    return datasets.load_from_disk(ADDRESS)


class _Killed(BaseException):
    """What nothing catches: the process is gone."""


def stop_after(files: Any, patched: pytest.MonkeyPatch, writes: int, error: BaseException) -> None:
    """Let the driver of the store write so many objects, and then end with an error."""
    done: list[str] = []

    def count(name: str) -> Callable[..., Any]:
        function = getattr(files, name)

        def counted(*arguments: Any) -> Any:
            if len(done) >= writes:
                raise error
            done.append(name)
            return function(*arguments)

        return counted

    for name in ("put_file", "pipe_file", "rm_file"):
        patched.setattr(files, name, count(name))


# The mark, 7 objects, the manifest, 3 names for datasets, then what goes.
@pytest.mark.parametrize("writes", [0, 4, 9, 12])
def test_an_upload_that_is_killed_leaves_the_old_set_or_the_new(
    files: Any, tmp_path: Path, prepare_at: PrepareAt, writes: int
) -> None:
    old = prepare_at(ADDRESS)
    with pytest.MonkeyPatch.context() as patched:
        stop_after(files, patched, writes, _Killed())
        with pytest.raises(_Killed):
            prepare_at(ADDRESS, ROWS[:3], overwrite=True)
    assert verify(ADDRESS) == []
    rows = load(ADDRESS)["train"]["id"][:]
    assert len(rows) == (3 if writes >= 9 else 5)
    assert len(open_with_datasets()["train"]) in (3, 5)
    again = prepare_at(ADDRESS, ROWS[:3], overwrite=True)
    assert again.done == ("unchanged" if writes >= 9 else "replaced")
    files.invalidate_cache()
    left = files.find("bucket/sets/one")
    assert not [name for name in left if ".upload-" in name or tag_of(old.manifest) in name]
    assert len(left) == 11
    assert verify(ADDRESS) == []
    assert len(open_with_datasets()["train"]) == 3


@pytest.mark.parametrize("writes", [0, 8])
def test_a_first_upload_that_stops_leaves_no_half_of_a_set_and_goes_on(
    files: Any, tmp_path: Path, prepare_at: PrepareAt, writes: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        stop_after(files, patched, writes, ConnectionError("the connection was lost"))
        words = f"{ADDRESS}: the connection was lost; check the address"
        with pytest.raises(StoreFailed, match=words):
            prepare_at(ADDRESS)
    with pytest.raises(UsageError, match="no set there"):
        find_folder(ADDRESS)
    again = prepare_at(ADDRESS)
    assert again.manifest["shards"] == {"made": 1, "reused": 1}
    assert verify(ADDRESS) == []


def test_an_upload_of_another_machine_is_left_alone(
    files: Any, tmp_path: Path, prepare_at: PrepareAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(platform, "node", lambda: "node7")
        stop_after(files, patched, 4, _Killed())
        with pytest.raises(_Killed):
            prepare_at(ADDRESS)
    files.invalidate_cache()
    theirs = set(files.find("bucket/sets/one"))
    assert len(theirs) == 4
    prepare_at(ADDRESS, ROWS[:3])
    files.invalidate_cache()
    assert theirs < set(files.find("bucket/sets/one"))
    assert verify(ADDRESS) == []


def test_a_set_that_is_replaced_while_it_is_fetched_is_fetched_anew(
    files: Any, tmp_path: Path, prepare_at: PrepareAt, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_at(ADDRESS)
    get_file, received = files.get_file, list[str]()

    def replaced(name: str, path: str) -> None:
        received.append(name)
        if len(received) == 3:
            prepare_at(ADDRESS, ROWS[:3], overwrite=True)
        get_file(name, path)

    monkeypatch.setattr(files, "get_file", replaced)
    assert verify(ADDRESS) == []
    assert load(ADDRESS)["train"]["id"][:] == ["e0", "e1", "e2"]


def test_what_others_put_there_is_not_replaced_unless_asked(
    files: Any, tmp_path: Path, prepare_at: PrepareAt
) -> None:
    files.pipe_file("bucket/sets/one/model.bin", b"theirs")
    with pytest.raises(UsageError, match=f"{ADDRESS} holds something that is not a whole set"):
        prepare_at(ADDRESS)
    assert files.cat_file("bucket/sets/one/model.bin") == b"theirs"
    prepare_at(ADDRESS, overwrite=True)
    assert verify(ADDRESS) == []


def test_a_changed_file_on_the_store_is_refused(
    files: Any, tmp_path: Path, prepare_at: PrepareAt
) -> None:
    made = prepare_at(ADDRESS)
    name = next(name for name in made.manifest["files"] if name.endswith(".arrow"))
    place = f"bucket/sets/one/{name_object(name, tag_of(made.manifest))}"
    content = bytearray(files.cat_file(place))
    content[-20] ^= 1
    files.pipe_file(place, bytes(content))
    with pytest.raises(SealMismatch, match=name):
        load(ADDRESS)


def test_a_copy_is_fetched_again_once_the_set_has_changed(
    files: Any, tmp_path: Path, prepare_at: PrepareAt
) -> None:
    prepare_at(ADDRESS)
    first = load(ADDRESS)["train"]["id"][:]
    prepare_at(ADDRESS, ROWS[:2], overwrite=True)
    assert first == [row["id"] for row in ROWS]
    assert load(ADDRESS)["train"]["id"][:] == ["e0", "e1"]


def test_a_manifest_that_names_a_file_outside_fetches_nothing(
    files: Any, tmp_path: Path, prepare_at: PrepareAt
) -> None:
    made = prepare_at(ADDRESS)
    evil = {**made.manifest, "files": {"../../evil": {"bytes": 1, "sha256": "0"}}}
    files.pipe_file(f"bucket/sets/one/{MANIFEST}", json.dumps(evil).encode())
    with pytest.raises(UsageError, match="names a file outside of the set"):
        load(ADDRESS)
    assert not list(tmp_path.rglob("evil"))


def test_rejects_of_a_set_on_a_store_are_written_where_the_user_stands(
    files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    write_lines(source, [*ROWS, {"id": "bad"}])
    flags = ("--input", str(source), "--tokenizer", str(ROOT / "configs/tokenizer"))
    assert main(["prepare", *flags, "--output", ADDRESS]) == 1
    assert str(tmp_path / "one.rejects.jsonl") in capsys.readouterr().err
    assert (tmp_path / "one.rejects.jsonl").is_file()
    assert not files.exists("bucket/sets/one")


def test_the_verbs_read_a_set_from_a_store(
    files: Any, tmp_path: Path, prepare_at: PrepareAt, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_at(ADDRESS)
    assert main(["verify", ADDRESS]) == 0
    assert main(["inspect", ADDRESS, "--row", "0"]) == 0
    assert main(["report", ADDRESS]) == 0
    assert main(["diff", ADDRESS, ADDRESS]) == 0
    assert "a-secret-key" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "address",
    ["s3://bucket/sets/in", "s3://bucket/sets/in/*.jsonl", "s3://bucket/sets/in/**/*.jsonl"],
)
def test_input_on_a_store_gives_the_set_of_the_same_files(
    files: Any, tmp_path: Path, make_config: Callable[..., PrepareConfig], address: str
) -> None:
    here = tmp_path / "in"
    here.mkdir()
    for name, rows in (("a.jsonl", ROWS[:2]), ("b.jsonl", ROWS[2:])):
        files.pipe_file(f"bucket/sets/in/{name}", write_lines(here / name, rows).read_bytes())
    files.pipe_file("bucket/sets/in/notes.txt", b"no data")
    there = prepare(make_config(address))
    assert [row["source"] for row in load(there.output)["train"]] == [
        *("a.jsonl:1", "a.jsonl:2", "b.jsonl:1", "b.jsonl:2", "b.jsonl:3")
    ]
    assert there.digest == prepare(make_config(here, output=str(tmp_path / "other"))).digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "other", "set"]


def test_an_address_without_data_is_wrong_usage(
    files: Any, make_config: Callable[..., PrepareConfig]
) -> None:
    with pytest.raises(UsageError, match="input s3://bucket/sets/none: no data file there"):
        prepare(make_config("s3://bucket/sets/none"))


def test_append_to_a_store_is_wrong_usage(
    files: Any, tmp_path: Path, prepare_at: PrepareAt
) -> None:
    with pytest.raises(UsageError, match=r"append: .* is on a store"):
        prepare_at(ADDRESS, append=True)


def test_a_bucket_that_is_not_there_is_named(
    files: Any, tmp_path: Path, prepare_at: PrepareAt
) -> None:
    with pytest.raises((StoreFailed, UsageError), match="s3://nobody/sets/one"):
        prepare_at("s3://nobody/sets/one")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("s3://bucket", "a whole bucket; expected a place inside it"),
        ("s3://me:secret@bucket/set", "a name and a password in it"),
        ("gs://bucket/set", r"install its driver: pip install 'context-frozen\[gs\]'"),
        ("az://box/set", r"install its driver: pip install 'context-frozen\[az\]'"),
    ],
)
def test_an_address_that_cannot_be_used_is_wrong_usage(address: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        SetStore(address)
    assert "secret" not in str(caught.value)


def test_a_folder_is_no_address(tmp_path: Path) -> None:
    assert not is_address(tmp_path)
    assert find_folder(tmp_path) == tmp_path
