"""A saved set is loaded whole and with its own tokenizer, and verified to the last bit."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer

from pipeline.config import PrepareConfig
from pipeline.errors import SealMismatch, UsageError
from pipeline.job.prepare import prepare
from pipeline.sets.damage import hash_manifest
from pipeline.sets.load import load, verify
from pipeline.sets.place import MANIFEST
from pipeline.types import row_features
from tests.conftest import write_lines

SHARD = "train/data-00000-of-00001.arrow"


@pytest.fixture
def folder(quickstart_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(quickstart_set, tmp_path / "set"))


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text("utf-8"))


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest that holds its own hash: what a careful forger would do."""
    manifest = manifest | {"sha256": hash_manifest(manifest)}
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")


def seal_files(folder: Path) -> None:
    """Make the manifest's list of files that of the folder."""
    manifest = manifest_of(folder)
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_manifest(folder, manifest)


def rows_in_memory(folder: Path) -> datasets.Dataset:
    """Return the rows of a set and take them off the disk, so that others can be saved there."""
    rows = datasets.load_from_disk(str(folder), keep_in_memory=True)["train"]
    shutil.rmtree(folder / "train")
    return rows


def save_rows(folder: Path, rows: datasets.Dataset) -> None:
    """Save other rows, as whole files that the manifest knows."""
    rows.save_to_disk(str(folder / "train"))
    seal_files(folder)


def rewrite_rows(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Save the rows again after ``change``."""
    rows = rows_in_memory(folder)
    changed = [change(row) for row in rows]
    save_rows(folder, datasets.Dataset.from_list(changed, features=rows.features))


# ---- loading


def test_a_set_loads_as_it_was_saved(quickstart_set: Path) -> None:
    splits = load(quickstart_set)
    assert list(splits) == ["train"]
    assert splits["train"].features == row_features()
    assert (
        splits["train"].to_list() == datasets.load_from_disk(str(quickstart_set))["train"].to_list()
    )


def test_what_was_trained_on_is_left_out(quickstart_set: Path) -> None:
    ids = load(quickstart_set)["train"]["id"]
    seen = {ids[0], ids[3], ids[-1], "no such id"}
    assert load(quickstart_set, exclude_ids=seen)["train"]["id"] == [
        id_ for id_ in ids if id_ not in seen
    ]
    assert len(load(quickstart_set, exclude_ids=ids)["train"]) == 0
    assert len(load(quickstart_set, exclude_ids=[])["train"]) == len(ids)


def test_one_id_is_a_list_of_one(quickstart_set: Path) -> None:
    ids = load(quickstart_set)["train"]["id"]
    assert load(quickstart_set, exclude_ids=ids[0])["train"]["id"] == ids[1:]


def test_rows_cannot_be_left_out_by_id_where_none_was_saved(
    tmp_path: Path, make_config: Callable[..., PrepareConfig]
) -> None:
    lines = write_lines(tmp_path / "e.jsonl", [{"id": "a", "context": "x", "continuation": "y"}])
    output = prepare(make_config(lines, columns="train")).output
    assert len(load(output)["train"]) == 1
    with pytest.raises(UsageError, match="keeps no id; exclude_ids needs a set with columns: full"):
        load(output, exclude_ids=["a"])


@pytest.mark.parametrize("as_text", [True, False])
def test_the_sets_own_tokenizer_passes(
    quickstart_set: Path, bundled_tokenizer: Path, as_text: bool
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled_tokenizer)
    assert load(quickstart_set, tokenizer=str(bundled_tokenizer) if as_text else tokenizer)
    assert verify(quickstart_set, tokenizer=str(bundled_tokenizer) if as_text else tokenizer) == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda tokenizer: tokenizer.add_tokens(["<new>"]), "seal.tokenizer.backend_sha256"),
        (lambda tokenizer: setattr(tokenizer, "chat_template", "x"), "seal.templates"),
        (lambda tokenizer: setattr(tokenizer, "chat_template", None), "seal.templates"),
    ],
)
def test_another_tokenizer_or_template_is_refused_with_the_key_that_differs(
    quickstart_set: Path, bundled_tokenizer: Path, change: Callable[[Any], None], key: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bundled_tokenizer)
    change(tokenizer)
    with pytest.raises(SealMismatch) as caught:
        load(quickstart_set, tokenizer=tokenizer)
    assert caught.value.key == key
    (finding,) = verify(quickstart_set, tokenizer=tokenizer)
    assert key in finding


def test_a_set_with_a_template_file_loads_with_the_bare_tokenizer(
    tmp_path: Path, make_config: Callable[..., PrepareConfig], bundled_tokenizer: Path
) -> None:
    template = tmp_path / "mine.jinja"
    shutil.copy(bundled_tokenizer / "chat_template.jinja", template)
    template.write_text(template.read_text("utf-8") + "{# mine #}", "utf-8")
    lines = write_lines(tmp_path / "e.jsonl", [{"id": "a", "context": "x", "continuation": "y"}])
    output = prepare(make_config(lines, chat_template=str(template))).output
    assert load(output, tokenizer=str(bundled_tokenizer))


@pytest.mark.parametrize("name", [SHARD, "rejects.jsonl", "README.md", "train/state.json"])
def test_a_changed_file_is_refused_by_name(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes() or b"\x00")
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(SealMismatch, match=f"^{name} differs"):
        load(folder)
    assert verify(folder)[0].startswith(f"{name}: expected ")


@pytest.mark.parametrize("name", [SHARD, "train/dataset_info.json", "README.md"])
def test_a_missing_file_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(SealMismatch, match=r"no such file"):
        load(folder)
    assert f"{name}: expected" in verify(folder)[0]


def test_a_shard_cut_by_its_end_mark_is_refused(folder: Path) -> None:
    # datasets loads all rows of such a file without a word.
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-8])
    with pytest.raises(SealMismatch, match=SHARD):
        load(folder)
    assert verify(folder)[0].startswith(SHARD)


@pytest.mark.parametrize("use", [load, verify])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"no manifest\.json there"),
        ("{", "expected JSON"),
        ("[]", "expected a JSON object"),
        ("null", "expected a JSON object"),
        ('{"digest": "x"}', "lacks config, counts, files, seal"),
    ],
)
def test_a_folder_without_a_whole_manifest_is_no_set(
    folder: Path, use: Callable[[Path], Any], content: str | None, words: str
) -> None:
    if content is None:
        (folder / MANIFEST).unlink()
    else:
        (folder / MANIFEST).write_text(content)
    with pytest.raises(UsageError, match=words):
        use(folder)


@pytest.mark.parametrize("use", [load, verify])
def test_a_folder_that_is_not_there_is_no_set(tmp_path: Path, use: Callable[[Path], Any]) -> None:
    with pytest.raises(UsageError, match="expected the folder of a prepared set"):
        use(tmp_path / "missing")


# ---- verifying


def test_a_set_as_it_was_made_has_no_faults(quickstart_set: Path, folder: Path) -> None:
    assert verify(quickstart_set) == []
    assert verify(folder) == []
    assert verify(str(folder)) == []


def test_a_set_of_numbers_alone_has_no_faults(
    tmp_path: Path, make_config: Callable[..., PrepareConfig]
) -> None:
    lines = write_lines(tmp_path / "e.jsonl", [{"id": "a", "context": "x", "continuation": "y"}])
    assert verify(prepare(make_config(lines, columns="train")).output) == []


def test_an_empty_set_has_no_faults(
    tmp_path: Path, make_config: Callable[..., PrepareConfig]
) -> None:
    lines = write_lines(tmp_path / "e.jsonl", ["{"])
    assert verify(prepare(make_config(lines, max_reject_rate=1)).output) == []


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_one_flipped_bit_of_a_shard_is_found(folder: Path, place: float) -> None:
    data = bytearray((folder / SHARD).read_bytes())
    data[int(len(data) * place)] ^= 1
    (folder / SHARD).write_bytes(bytes(data))
    assert SHARD in verify(folder)[0]


def of_row_2(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what changes the row of one id alone; a function is given the old value."""

    def change(row: dict[str, Any]) -> dict[str, Any]:
        if row["source"] != "examples.jsonl:3":
            return row
        return row | {
            name: value(row[name]) if callable(value) else value for name, value in values.items()
        }

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_ids": lambda ids: [*ids[:-1], 3072]}, "labels are not|outside the vocabulary"),
        ({"input_ids": lambda ids: [-1, *ids[1:]]}, "outside the vocabulary of 3072"),
        ({"input_ids": lambda ids: ids[:-1]}, "lengths differ"),
        ({"labels": lambda labels: labels[1:]}, "lengths differ"),
        ({"attention_mask": lambda mask: mask[1:]}, "lengths differ"),
        ({"total_len": lambda total: total + 1}, "lengths differ"),
        ({"context_len": 0}, "context_len 0 is not within"),
        ({"context_len": 100_000}, "context_len 100000 is not within"),
        ({"context_len": lambda length: length - 1}, "labels are not -100 on the context"),
        ({"labels": lambda labels: [5, *labels[1:]]}, "labels are not -100 on the context"),
        ({"labels": lambda labels: [*labels[:-1], -100]}, "labels are not -100 on the context"),
        ({"attention_mask": lambda mask: [0, *mask[1:]]}, "attention_mask is not ones"),
        ({"context_hash": "0" * 32}, "context_hash is not that of the context"),
        ({"flags": ["no_such_flag"]}, "unknown flags"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_row_that_breaks_an_invariant_is_named(
    folder: Path, change: dict[str, Any], words: str
) -> None:
    rewrite_rows(folder, of_row_2(**change))
    (finding,) = verify(folder)
    assert finding.startswith("train: row 2: ")
    assert any(word in finding for word in words.split("|"))


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 0.5},
        {"decision_idx": 0},
        {"dropped_tokens": 7},
        {"dropped_messages": 1},
        {"id": "other"},
    ],
    ids=str,
)
def test_a_row_of_other_content_changes_the_digest(folder: Path, change: dict[str, Any]) -> None:
    rewrite_rows(folder, of_row_2(**change))
    (finding,) = verify(folder)
    assert finding.startswith(f"{MANIFEST}: digest ")


def test_a_token_of_context_and_hash_changed_together_changes_the_digest(folder: Path) -> None:
    from pipeline.rows.table import hash_context

    def change(row: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        ids = [row["input_ids"][0] ^ 1, *row["input_ids"][1:]]
        context = np.array(ids[: row["context_len"]], np.int32)
        return row | {"input_ids": ids, "context_hash": hash_context(context)}

    rewrite_rows(folder, change)
    (finding,) = verify(folder)
    assert finding.startswith(f"{MANIFEST}: digest ")


def test_a_row_too_few_is_found(folder: Path) -> None:
    rows = rows_in_memory(folder)
    save_rows(folder, rows.select(range(len(rows) - 1)))
    counted, digest = verify(folder)
    assert f"counts {len(rows)} rows, found {len(rows) - 1}" in counted
    assert "digest" in digest


def test_a_row_twice_is_found(folder: Path) -> None:
    rows = rows_in_memory(folder)
    save_rows(folder, rows.select([0, *range(len(rows))]))
    counted, digest = verify(folder)
    assert f"found {len(rows) + 1}" in counted
    assert "digest" in digest


def test_the_order_of_rows_is_not_the_digests_business(folder: Path) -> None:
    rows = rows_in_memory(folder)
    save_rows(folder, rows.select(range(len(rows) - 1, -1, -1)))
    assert verify(folder) == []


def test_other_columns_are_found(folder: Path) -> None:
    save_rows(folder, rows_in_memory(folder).remove_columns("labels"))
    (found,) = verify(folder)
    assert "train/data-00000-of-00001.arrow" in found
    assert "no column labels" in found


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("digest",), "0" * 64),
        (("seal", "key"), "0" * 64),
        (("seal", "settings", "max_len"), 99_999),
        (("seal", "settings", "chat_template_kwargs"), {"enable_thinking": False}),
        (("seal", "server", "version"), "0.1"),
        (("seal", "versions", "transformers"), "4.0"),
        (("seal", "input"), {}),
        (("seal", "tokenizer", "files"), {}),
        (("counts", "rows"), 1),
        (("files", SHARD, "bytes"), 1),
        (("files", SHARD, "sha256"), "0" * 64),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_an_edited_manifest_is_found(folder: Path, path: tuple[str, ...], value: Any) -> None:
    manifest = manifest_of(folder)
    place = manifest
    for name in path[:-1]:
        place = place[name]
    assert place[path[-1]] != value
    place[path[-1]] = value
    write_manifest(folder, manifest)
    assert len(verify(folder)) == 1


def test_rows_that_cannot_be_read_are_a_finding(folder: Path) -> None:
    (folder / SHARD).write_bytes(b"not arrow")
    findings = verify(folder)
    assert SHARD in findings[0]
    assert f"{SHARD}:1: unreadable_file: no rows of a set" in findings[-1]


def test_verifying_changes_nothing(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    verify(folder)
    load(folder, exclude_ids=["x"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
