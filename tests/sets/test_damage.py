"""Of a set that was damaged, ``verify`` names the file and the first bad rows; ``load`` refuses it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config import PrepareConfig
from pipeline.errors import DataRefused, SealMismatch, UsageError
from pipeline.job.prepare import prepare
from pipeline.sets.arrow_file import row_schema
from pipeline.sets.damage import find_damage
from pipeline.sets.load import load, verify
from pipeline.sets.place import MANIFEST
from tests.conftest import ROOT, shards_of, write_lines

ROWS = 60
Block = tuple[str, int, int, range]
"""File, its bytes from and to, its rows among those of the split."""


def examples(answer: str, first: int = 0, number: int = ROWS) -> list[dict[str, Any]]:
    return [
        {
            "id": f"e{n}",
            "context": f"What is {n}?",
            "continuation": f"{answer} {n}",
            "reason": "asked",
            "memories": ["one", "two"],
        }
        for n in range(first, first + number)
    ]


@pytest.fixture(scope="module")
def make_set(
    tmp_path_factory: pytest.TempPathFactory, bundled_tokenizer: Path
) -> Callable[..., PrepareConfig]:
    """Return a function that makes a set of several shards, each of several blocks."""

    def make(rows: list[dict[str, Any]], **settings: Any) -> PrepareConfig:
        folder = tmp_path_factory.mktemp("made")
        values: dict[str, Any] = {
            "input": (str(write_lines(folder / "in.jsonl", rows)),),
            "tokenizer": str(bundled_tokenizer),
            "output": str(folder / "set"),
            "num_proc": 1,
            "batch_size": 4,
            "report": False,
            **settings,
        }
        config = PrepareConfig(**values)
        with shards_of(2000):
            prepare(config)
        return config

    return make


@pytest.fixture(scope="module")
def whole(make_set: Callable[..., PrepareConfig]) -> Path:
    return Path(make_set(examples("it is")).output)


@pytest.fixture(scope="module")
def another(make_set: Callable[..., PrepareConfig]) -> Path:
    """A set of as many rows and files, of the same sizes, with other answers."""
    return Path(make_set(examples("it was")).output)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "set"))


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text("utf-8"))


def shards_in(folder: Path) -> list[str]:
    return [f"train/{path.name}" for path in sorted((folder / "train").glob("data-*.arrow"))]


def blocks_of(folder: Path, split: str = "train") -> list[Block]:
    blocks: list[Block] = []
    row = 0
    for name, entry in manifest_of(folder)["files"].items():
        at = 0
        for block in entry.get("blocks", []) if name.startswith(f"{split}/") else []:
            rows, size, _ = block.split()
            blocks.append((name, at, at + int(size), range(row, row + int(rows))))
            at, row = at + int(size), row + int(rows)
    return blocks


def words_of(rows: range) -> str:
    return f"first bad rows: {rows[0]} to {rows[-1]} of train" if rows else "no row is hit"


def damage_byte(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# ---- what is sealed of a file of rows


def test_blocks_are_the_file_from_its_first_byte_to_its_last(whole: Path) -> None:
    assert len(shards_in(whole)) > 2
    for name, entry in manifest_of(whole)["files"].items():
        assert ("blocks" in entry) == name.endswith(".arrow")
        data = (whole / name).read_bytes()
        for _, start, end, _ in (block for block in blocks_of(whole) if block[0] == name):
            assert f"{zlib.crc32(data[start:end]):08x}" == entry["blocks"].pop(0)[-8:]
            assert start < end <= entry["bytes"]
        assert not entry.get("blocks")
    rows = [rows for *_, rows in blocks_of(whole)]
    assert [row for each in rows for row in each] == list(range(ROWS))
    assert max(map(len, rows)) == 4


def test_a_block_holds_the_rows_that_it_names(whole: Path) -> None:
    ids = load(whole)["train"]["id"][:]
    schema = row_schema("full").serialize().to_pybytes()
    for name, start, end, rows in blocks_of(whole):
        if rows:
            # The first block of a file has the schema before its rows.
            data = (whole / name).read_bytes()[start:end]
            table = pa.ipc.open_stream(data if start == 0 else schema + data).read_all()
            assert table.column("id").to_pylist() == [ids[row] for row in rows]


def test_a_set_that_grew_or_lost_rows_still_knows_its_blocks(
    make_set: Callable[..., PrepareConfig], tmp_path: Path
) -> None:
    config = make_set(examples("it is"), on_duplicate="last", validation_fraction=0.3)
    # Takes the place of some earlier rows, whose files are then written again.
    more = write_lines(tmp_path / "more.jsonl", examples("it will be", ROWS - 5))
    grown = prepare(dataclasses.replace(config, input=(str(more),), append=True))
    assert grown.counts["by_code"] == {"duplicate_id": 5}
    assert verify(grown.output) == []
    for split, rows in load(grown.output).items():
        blocks = blocks_of(grown.output, str(split))
        assert sum(len(each) for *_, each in blocks) == len(rows)
        name, _, end, _ = blocks[-1]
        assert (grown.output / name).stat().st_size == end


# ---- damage


def test_a_flipped_bit_names_the_rows_of_its_block(folder: Path) -> None:
    for name, start, end, rows in blocks_of(folder):
        for at in (start, (start + end) // 2, end - 1):
            damage_byte(folder / name, at)
            (found,) = find_damage(folder, manifest_of(folder))
            assert (found.name, found.rows) == (name, words_of(rows))
            assert found.expected.startswith("sha256 ")
            damage_byte(folder / name, at)
    assert list(find_damage(folder, manifest_of(folder))) == []


def test_verify_and_load_say_the_same_of_a_flipped_bit(folder: Path) -> None:
    name, _, end, rows = next(block for block in blocks_of(folder) if block[3].start > 20)
    damage_byte(folder / name, end - 20)
    assert verify(folder)[0].startswith(f"{name}: expected sha256 ")
    assert verify(folder)[0].endswith(words_of(rows))
    with pytest.raises(SealMismatch, match=f"^{name} differs: .*{words_of(rows)}"):
        load(folder)


OFFSETS = """
import sys
from pathlib import Path
import pyarrow as pa
from pipeline.sets.load import verify

folder, name = sys.argv[1:]
path = Path(folder) / name
data = path.read_bytes()
whole = pa.py_buffer(data)
batches = list(pa.ipc.open_stream(whole))
flips = 0
for column in ("id", "reason", "input_ids", "flags", "memories"):
    offsets = batches[0].column(column).buffers()[1]
    start = offsets.address - whole.address
    for at in range(start, start + offsets.size):
        damaged = bytearray(data)
        damaged[at] ^= 0x80
        path.write_bytes(damaged)
        findings = verify(folder)
        assert "first bad rows: 0 to 3 of train" in findings[0], findings
        flips += 1
print(flips)
"""


def test_a_damaged_offset_is_not_followed(folder: Path) -> None:
    # It leads to anywhere in memory: before rows were checked for that, a process died of it.
    ended = subprocess.run(
        [sys.executable, "-c", OFFSETS, str(folder), shards_in(folder)[0]],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ended.returncode == 0, (ended.returncode, ended.stderr)
    assert int(ended.stdout) >= 100


ANY_BIT = """
import json, random, sys
from pathlib import Path
from pipeline.sets.load import verify

folder, blocks, number = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
chance = random.Random(number)
whole = {name: (folder / name).read_bytes() for name, *_ in blocks}
for _ in range(number):
    name, start, end, words = chance.choice(blocks)
    damaged = bytearray(whole[name])
    damaged[chance.randrange(start, end)] ^= 1 << chance.randrange(8)
    (folder / name).write_bytes(damaged)
    first = verify(folder)[0]
    assert first.startswith(f"{name}: ") and first.endswith(words), first
    (folder / name).write_bytes(whole[name])
"""


@pytest.mark.parametrize(
    "number", [100, pytest.param(20_000, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])]
)
def test_any_flipped_bit_is_found_with_its_rows_and_ends_no_process(
    folder: Path, number: int
) -> None:
    blocks = [(name, start, end, words_of(rows)) for name, start, end, rows in blocks_of(folder)]
    ended = subprocess.run(
        [sys.executable, "-c", ANY_BIT, str(folder), json.dumps(blocks), str(number)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert ended.returncode == 0, (ended.returncode, ended.stderr)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9, 1.0])
def test_a_cut_shard_names_the_first_row_that_is_not_whole(folder: Path, share: float) -> None:
    name = shards_in(folder)[1]
    size = (folder / name).stat().st_size
    left = min(int(size * share), size - 1)
    with (folder / name).open("r+b") as file:
        file.truncate(left)
    rows = next(each for file, _, end, each in blocks_of(folder) if file == name and end > left)
    finding = verify(folder)[0]
    assert finding == f"{name}: expected {size} bytes, found {left} bytes; {words_of(rows)}"
    with pytest.raises(SealMismatch, match=name):
        load(folder)


def test_bytes_after_the_end_hit_no_row(folder: Path) -> None:
    name = shards_in(folder)[0]
    with (folder / name).open("ab") as file:
        file.write(b"more")
    assert verify(folder)[0].endswith("no row is hit")


def test_a_missing_shard_names_all_its_rows(folder: Path) -> None:
    name = shards_in(folder)[1]
    (folder / name).unlink()
    rows = [row for file, _, _, each in blocks_of(folder) if file == name for row in each]
    missing = f"missing rows: {rows[0]} to {rows[-1]} of train"
    assert verify(folder)[0].endswith(f"found no such file; {missing}")
    with pytest.raises(SealMismatch, match=missing):
        load(folder)


def test_exchanged_shards_are_told_from_damage(folder: Path) -> None:
    first, second, *_ = shards_in(folder)
    (folder / first).rename(folder / "kept")
    (folder / second).rename(folder / first)
    (folder / "kept").rename(folder / second)
    findings = verify(folder)
    assert len(findings) == 2
    for finding, name, other in zip(findings, (first, second), (second, first), strict=True):
        assert finding.startswith(f"{name}: expected ")
        assert f"found the content of {other}; first bad rows: " in finding
    with pytest.raises(SealMismatch, match=f"the content of {second}"):
        load(folder)


def test_a_shard_of_another_set_is_bad_from_its_first_row(folder: Path, another: Path) -> None:
    name = shards_in(folder)[1]
    shutil.copy(another / name, folder / name)
    start = next(rows for file, _, _, rows in blocks_of(folder) if file == name).start
    assert f"; first bad rows: {start} to " in verify(folder)[0]


def test_what_a_larger_set_left_in_the_folder_is_named(folder: Path) -> None:
    # load_dataset reads every such file; the one beside it is what a map of datasets leaves.
    shutil.copy(folder / shards_in(folder)[0], folder / "train" / "data-00007-of-00008.arrow")
    shutil.copy(folder / shards_in(folder)[0], folder / "train" / "cache-0123456789abcdef.arrow")
    (finding,) = verify(folder)
    assert finding.startswith("train/data-00007-of-00008.arrow: expected no such file, found ")
    with pytest.raises(SealMismatch, match=r"data-00007-of-00008\.arrow"):
        load(folder)


@pytest.mark.parametrize("copied", ["none", "half", "all but one"])
def test_a_set_that_was_copied_in_part_is_named_by_what_is_missing(
    whole: Path, tmp_path: Path, copied: str
) -> None:
    names = [*manifest_of(whole)["files"]]
    taken = {"none": [], "half": names[: len(names) // 2], "all but one": names[1:]}[copied]
    for name in [*taken, MANIFEST]:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(whole / name, tmp_path / "set" / name)
    missing = [name for name in names if name not in taken]
    findings = [each for each in verify(tmp_path / "set") if "no such file" in each]
    assert [each.split(": ")[0] for each in findings] == missing
    with pytest.raises(SealMismatch, match="no such file"):
        load(tmp_path / "set")
    (tmp_path / "set" / MANIFEST).unlink()
    with pytest.raises(UsageError, match=r"no manifest\.json there"):
        verify(tmp_path / "set")


def change_leaf(value: Any) -> Any:
    """Return ``value`` with one number or text in it, the deepest and last, replaced."""
    if isinstance(value, dict) and value:
        *_, last = value
        return value | {last: change_leaf(value[last])}
    if isinstance(value, list) and value:
        return [*value[:-1], change_leaf(value[-1])]
    return "edited"


def test_an_edit_of_any_part_of_the_manifest_is_found(folder: Path) -> None:
    manifest = manifest_of(folder)
    edits = [manifest | {name: change_leaf(value)} for name, value in manifest.items()]
    edits += [{**manifest, "files": []}, {**manifest, "seal": None}, {**manifest, "more": 1}]
    edits += [{name: value for name, value in manifest.items() if name != "sha256"}]
    for edited in edits:
        assert edited != manifest
        (folder / MANIFEST).write_text(json.dumps(edited), "utf-8")
        (finding,) = verify(folder)
        assert f"{MANIFEST}: " in finding
        assert re.search(r"expected sha256|it was changed", finding)
        with pytest.raises((SealMismatch, DataRefused), match=r"manifest\.json(:| differs)"):
            load(folder)
    # Another layout of the same text is no edit.
    (folder / MANIFEST).write_text(json.dumps(manifest, sort_keys=True), "utf-8")
    assert verify(folder) == []
