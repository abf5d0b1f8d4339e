"""A saved set: load it for training, or verify that it is what its manifest says."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import datasets
import pyarrow as pa

from pipeline.boundary import hash_context
from pipeline.errors import SealMismatch, UsageError
from pipeline.job.publish import MANIFEST
from pipeline.row_table import digest_rows, sum_digests
from pipeline.seal import check_tokenizer, hash_file_bytes, hash_seal
from pipeline.types import FLAGS, IGNORE_LABEL, row_features

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 512


def load(
    path: str | Path,
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    exclude_ids: Collection[str] = (),
) -> datasets.DatasetDict:
    """Return the splits of a saved set, sealed files checked.

    ``tokenizer`` (a folder, a Hub name or a loaded tokenizer) is compared with the seal;
    ``exclude_ids`` are the examples that were trained on already. Raises `UsageError` where there is
    no set, `SealMismatch` where a file, the tokenizer or its template is not the sealed one.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    for name, expected, found in _find_changed_files(folder, manifest):
        raise SealMismatch(name, expected, found, "fetch or prepare the set again")
    if tokenizer is not None:
        _check_tokenizer(manifest, tokenizer)
    splits = open_splits(folder)
    if not exclude_ids:
        return splits
    left_out = {exclude_ids} if isinstance(exclude_ids, str) else frozenset(exclude_ids)
    for name, rows in splits.items():
        if "id" not in rows.column_names:
            raise UsageError(
                f"{folder}: columns: train keeps no id; exclude_ids needs a set with columns: full"
            )
        ids = rows.data.column("id").to_pylist()
        splits[name] = rows.select([at for at, id_ in enumerate(ids) if id_ not in left_out])
    return splits


def verify(path: str | Path, tokenizer: str | PreTrainedTokenizerBase | None = None) -> list[str]:
    """Return what is wrong with a saved set, a sentence each; an empty list where nothing is.

    Checks the sha256 of every file, the schema, the invariants of every row, the counts and the
    content digest; and, with ``tokenizer``, the seal. Raises `UsageError` where there is no set.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    findings = [
        f"{name}: expected {expected}, found {found}"
        for name, expected, found in _find_changed_files(folder, manifest)
    ]
    if hash_seal(manifest["seal"]) != manifest["seal"]["key"]:
        findings.append(f"{MANIFEST}: the seal is not the one that its key was made from")
    try:
        splits = open_splits(folder)
    except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
        return [*findings, f"{folder}: cannot be opened: {error}"]
    findings += _find_row_faults(splits, manifest)
    if tokenizer is not None:
        try:
            _check_tokenizer(manifest, tokenizer)
        except SealMismatch as error:
            findings.append(str(error))
    return findings


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a set. Raises `UsageError` where there is none."""
    try:
        manifest: Any = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder}: no {MANIFEST} there; expected the folder of a prepared set"
        ) from error
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder / MANIFEST}: {error}; expected JSON; prepare the set again"
        ) from error
    if not isinstance(manifest, dict):
        raise UsageError(f"{folder / MANIFEST}: expected a JSON object; prepare the set again")
    missing = {"digest", "seal", "counts", "config", "files"} - set(manifest)
    if missing:
        raise UsageError(
            f"{folder / MANIFEST}: lacks {', '.join(sorted(missing))}; prepare the set again"
        )
    return manifest


def open_splits(folder: Path) -> datasets.DatasetDict:
    """Return the splits of a folder, nothing checked. Raises `UsageError` for a single data set."""
    splits = datasets.load_from_disk(str(folder))
    if isinstance(splits, datasets.Dataset):
        raise UsageError(f"{folder}: a single Dataset; expected a DatasetDict with splits")
    return splits


def _check_tokenizer(manifest: dict[str, Any], tokenizer: str | PreTrainedTokenizerBase) -> None:
    from pipeline.encode import TextEncoder
    from pipeline.template.chat_template import resolve_templates

    encoder = (
        TextEncoder.from_path(tokenizer)
        if isinstance(tokenizer, str)
        else TextEncoder(tokenizer, None)
    )
    check_tokenizer(manifest["seal"], encoder, resolve_templates(encoder.tokenizer, None))


def _find_changed_files(folder: Path, manifest: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield each sealed file that is missing or changed: its name, what was sealed, what is there."""
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            yield name, f"{entry['bytes']} bytes", "no such file"
        elif path.stat().st_size != entry["bytes"]:
            yield name, f"{entry['bytes']} bytes", f"{path.stat().st_size} bytes"
        elif (digest := hash_file_bytes(path)) != entry["sha256"]:
            yield name, f"sha256 {entry['sha256'][:16]}", f"sha256 {digest[:16]}"


def _find_row_faults(splits: datasets.DatasetDict, manifest: dict[str, Any]) -> Iterator[str]:
    settings = manifest["seal"]["settings"]
    expected = row_features(settings["columns"])
    digests: list[bytes] = []
    rows_seen = 0
    for split, rows in splits.items():
        if rows.features != expected:
            names = sorted(set(rows.features) ^ set(expected)) or "types"
            yield f"{split}: columns differ from the schema ({names})"
            return
        for start in range(0, len(rows), _BATCH_ROWS):
            table: pa.Table = cast("Any", rows.with_format("arrow"))[start : start + _BATCH_ROWS]
            fault = _find_first_fault(table, settings["max_len"], manifest["seal"])
            if fault is not None:
                yield f"{split}: row {start + fault[0]}: {fault[1]}"
                return
            digests += digest_rows(table, [str(split)] * table.num_rows)
        rows_seen += len(rows)
    if rows_seen != manifest["counts"]["rows"]:
        yield f"{MANIFEST}: counts {manifest['counts']['rows']} rows, found {rows_seen}"
    if (digest := sum_digests(digests)) != manifest["digest"]:
        yield f"{MANIFEST}: digest {manifest['digest'][:16]}…, the rows give {digest[:16]}…"


def _find_first_fault(
    table: pa.Table, max_len: int, seal: dict[str, Any]
) -> tuple[int, str] | None:
    """Return the place and the fault of the first row that breaks an invariant."""
    vocabulary: int = seal["tokenizer"]["vocabulary_size"]
    columns = {name: table.column(name) for name in table.column_names}
    for index in range(table.num_rows):
        ids, labels, mask = (
            columns[name][index].values.to_numpy(zero_copy_only=False)
            for name in ("input_ids", "labels", "attention_mask")
        )
        context_len = columns["context_len"][index].as_py()
        total_len = columns["total_len"][index].as_py()
        if not len(ids) == len(labels) == len(mask) == total_len:
            return (
                index,
                f"lengths differ: {len(ids)} ids, {len(labels)} labels, total_len {total_len}",
            )
        if not 1 <= context_len < total_len:
            return index, f"context_len {context_len} is not within 1 and total_len {total_len} - 1"
        if total_len > max_len:
            return index, f"{total_len} tokens are over max_len {max_len}"
        if ids.min() < 0 or ids.max() >= vocabulary:
            return index, f"an id is outside the vocabulary of {vocabulary}"
        if (labels[:context_len] != IGNORE_LABEL).any() or (
            labels[context_len:] != ids[context_len:]
        ).any():
            return index, "labels are not -100 on the context and the ids after it"
        if (mask != 1).any():
            return index, "attention_mask is not ones"
        if "context_hash" in columns:
            if columns["context_hash"][index].as_py() != hash_context(ids[:context_len]):
                return index, "context_hash is not that of the context"
            if unknown := set(columns["flags"][index].as_py()) - FLAGS:
                return index, f"unknown flags {sorted(unknown)}"
    return None
