"""Sets on an object store: written with their manifest last, read back whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import load, prepare
from pipeline.cli import main
from pipeline.config import PrepareConfig
from pipeline.errors import SealMismatch, StoreFailed, UsageError
from pipeline.job.prepare import Prepared
from pipeline.job.publish import MANIFEST
from pipeline.saved import verify
from pipeline.store import SetStore, find_folder, is_address
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
    assert names == {*there.manifest["files"], MANIFEST}


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
    made = prepare_at(ADDRESS, ROWS[:3])
    assert not made.was_ready
    files.invalidate_cache()
    assert not files.find("bucket/sets/one/validation")
    assert verify(ADDRESS) == []


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_an_upload_that_stops_leaves_no_half_of_a_set_and_goes_on(
    files: Any, tmp_path: Path, prepare_at: PrepareAt, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    import s3fs

    whole = prepare_at(str(tmp_path / "here"))
    put, done = s3fs.S3FileSystem._put_file, []

    async def put_some(self: Any, *arguments: Any, **options: Any) -> Any:
        if len(done) == stop:
            raise ConnectionError("the connection was lost")
        done.append(arguments)
        return await put(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(s3fs.S3FileSystem, "_put_file", put_some)
        s3fs.S3FileSystem.clear_instance_cache()
        words = f"{ADDRESS}: the connection was lost; check the address"
        with pytest.raises(StoreFailed, match=words):
            prepare_at(ADDRESS)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UsageError, match="no set there"):
        find_folder(ADDRESS)
    again = prepare_at(ADDRESS)
    assert again.digest == whole.digest
    assert again.manifest["shards"] == {"made": 1, "reused": 1}
    assert verify(ADDRESS) == []


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
    content = bytearray(files.cat_file(f"bucket/sets/one/{name}"))
    content[-20] ^= 1
    files.pipe_file(f"bucket/sets/one/{name}", bytes(content))
    with pytest.raises(SealMismatch, match=name):
        load(ADDRESS)


def test_a_copy_is_fetched_again_once_the_set_has_changed(
    files: Any, tmp_path: Path, prepare_at: PrepareAt
) -> None:
    prepare_at(ADDRESS)
    first = load(ADDRESS)["train"]["id"][:]
    prepare_at(ADDRESS, ROWS[:2])
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
