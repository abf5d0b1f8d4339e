"""A saved set: load it for training, or verify that it is what its manifest says."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from pipeline.config import PrepareConfig, config_from_mapping
from pipeline.errors import DataRefused, SealMismatch, UnreadableFile, UsageError, excerpt_of
from pipeline.rows.table import digest_rows, hash_context, split_lists, sum_digests
from pipeline.sets.damage import find_damage
from pipeline.sets.manifest import MANIFEST, read_manifest
from pipeline.sets.one_set import read_one_set
from pipeline.sets.row_files import check_row_files
from pipeline.sets.seal import check_tokenizer, hash_seal
from pipeline.types import FLAGS, IGNORE_LABEL, REJECTED, TOKEN_COLUMNS, row_features

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Its functions are made when it is imported, so that no type checker knows them.
_compute: Any = pyarrow.compute
logger = logging.getLogger(__name__)

_BATCH_ROWS = 512
# Since this format of the seal, the worse continuations of pairs are in a split of their own.
_REJECTED_APART = 2
_MISPLACED = "the worse continuation of a pair belongs in the split rejected, and no other row does"


def load(
    path: str | PathLike[str],
    tokenizer: str | PreTrainedTokenizerBase | None = None,
    exclude_ids: Collection[str] = (),
    *,
    with_rejected: bool = False,
) -> datasets.DatasetDict:
    """Return the splits of a saved set, sealed files checked; of one on a store, a copy is opened.

    ``tokenizer`` (a folder, a Hub name or a loaded tokenizer) is compared with the seal;
    ``exclude_ids`` are the examples that were trained on already. The worse continuations of pairs
    are left out, unless ``with_rejected`` asks for their split, ``rejected``. Raises `UsageError`
    where there is no set, `SealMismatch` where a file, the tokenizer or its template is not the sealed one.
    """
    folder, manifest, splits = read_one_set(fspath(path), _open_checked)
    if tokenizer is not None:
        _check_tokenizer(manifest, tokenizer)
    splits = _set_rejected_apart(splits)
    if not with_rejected:
        splits.pop(REJECTED, None)
    if not exclude_ids:
        return splits
    left_out = {exclude_ids} if isinstance(exclude_ids, str) else frozenset(exclude_ids)
    for name, rows in splits.items():
        if "id" not in rows.column_names:
            raise UsageError(
                f"{folder}: columns: train keeps no id; exclude_ids needs a set with columns: full"
            )
        ids: list[str] = rows["id"][:]
        splits[name] = rows.select([at for at, id_ in enumerate(ids) if id_ not in left_out])
    return splits


def _set_rejected_apart(splits: datasets.DatasetDict) -> datasets.DatasetDict:
    """Return the splits with the worse continuations of pairs in `REJECTED` and nowhere else.

    Before seal format 2 they stood among the others. Where a set keeps no text, the rows of that
    split are told which they are, so that no collator takes them for better ones.
    """
    apart = datasets.DatasetDict()
    worse: list[datasets.Dataset] = []
    for name, rows in splits.items():
        if name == REJECTED:
            worse.append(_name_preference(rows))
            continue
        places = _find_rejected(rows)
        if len(places):
            worse.append(rows.select(places))
            rows = rows.select(np.setdiff1d(np.arange(len(rows)), places))
        apart[name] = rows
    if worse:
        apart[REJECTED] = datasets.concatenate_datasets(worse)
    return apart


def _find_rejected(rows: datasets.Dataset) -> NDArray[np.int64]:
    if "preference" not in rows.column_names:
        return np.empty(0, np.int64)
    is_worse: Any = _compute.equal(rows.data.column("preference"), REJECTED)
    return (
        np.flatnonzero(is_worse.to_numpy(zero_copy_only=False))
        if len(rows)
        else np.empty(0, np.int64)
    )


def _name_preference(rows: datasets.Dataset) -> datasets.Dataset:
    if "preference" in rows.column_names:
        return rows
    return rows.add_column("preference", [REJECTED] * len(rows))  # type: ignore[call-arg]


def verify(
    path: str | PathLike[str], tokenizer: str | PreTrainedTokenizerBase | None = None
) -> list[str]:
    """Return what is wrong with a saved set, a sentence each; an empty list where nothing is.

    Checks the sha256 of every file, the schema, the invariants of every row, the counts and the
    content digest; and, with ``tokenizer``, the seal. A manifest that was changed is the only
    finding, because nothing can be compared with it. Raises `UsageError` where there is no set.
    """
    return read_one_set(fspath(path), lambda folder: _find_faults_of(folder, tokenizer))


def _open_checked(folder: Path) -> tuple[Path, dict[str, Any], datasets.DatasetDict]:
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return folder, manifest, open_splits(folder)


def _find_faults_of(folder: Path, tokenizer: str | PreTrainedTokenizerBase | None) -> list[str]:
    try:
        manifest = read_manifest(folder)
    except DataRefused as error:
        return [str(error)]
    damage = list(find_damage(folder, manifest))
    findings = [str(each) for each in damage]
    if any(each.name == MANIFEST for each in damage):
        return findings
    if hash_seal(manifest["seal"]) != manifest["seal"]["key"]:
        findings.append(f"{MANIFEST}: the seal is not the one that its key was made from")
    try:
        splits = open_splits(folder, checks_numbers=False)
    except (UnreadableFile, UsageError, DataRefused) as error:
        findings.append(str(error))
    else:
        findings += _find_row_faults(splits, manifest)
    if tokenizer is not None:
        try:
            _check_tokenizer(manifest, tokenizer)
        except SealMismatch as error:
            findings.append(str(error))
    return findings


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Refuse a set of which a sealed file is missing or changed. Raises `SealMismatch`."""
    for damage in find_damage(folder, manifest):
        raise SealMismatch(
            damage.name, damage.expected, damage.found, "fetch or prepare the set again"
        )


def restore_config(
    manifest: Mapping[str, Any], *, trust_remote_code: bool = False, **changes: Any
) -> PrepareConfig:
    """Return the settings that a set was made with, some of them changed.

    The set may be of others, so it is not asked whether code that comes with its tokenizer may run.
    Settings that only a newer version knows are left out, and named in a warning.
    """
    known = {item.name for item in dataclasses.fields(PrepareConfig)}
    if newer := sorted(set(manifest["config"]) - known):
        logger.warning(
            "%s: settings of a newer version are left out: %s",
            MANIFEST,
            excerpt_of(", ".join(newer)),
        )
    kept = {name: value for name, value in manifest["config"].items() if name in known}
    return config_from_mapping(
        {**kept, **changes, "trust_remote_code": trust_remote_code}, MANIFEST
    )


def open_splits(folder: Path, *, checks_numbers: bool = True) -> datasets.DatasetDict:
    """Return the splits of a folder, its rows fit to be looked at but not compared with the manifest.

    Without ``checks_numbers`` a row may contradict itself: who asks so finds that out. Raises
    `UsageError` for a single data set, `DataRefused` where something in the folder points out of it or
    is nothing that `datasets` opens, `UnreadableFile` for files of rows that are damaged.
    """
    check_row_files(folder, checks_numbers=checks_numbers)
    try:
        return cast("datasets.DatasetDict", datasets.load_from_disk(str(folder)))
    except (
        *(OSError, ValueError, TypeError, LookupError, AttributeError),
        *(RuntimeError, ArithmeticError, MemoryError, pa.ArrowException),
    ) as error:
        found = excerpt_of(f"{type(error).__name__}: {error}")
        raise DataRefused(
            f"{folder}: datasets cannot open it ({found}); fetch or prepare the set again"
        ) from error


def _check_tokenizer(manifest: dict[str, Any], tokenizer: str | PreTrainedTokenizerBase) -> None:
    from pipeline.prompt.chat_template import resolve_templates
    from pipeline.tokens.encoder import TextEncoder

    encoder = (
        TextEncoder.from_path(tokenizer)
        if isinstance(tokenizer, str)
        else TextEncoder(tokenizer, None)
    )
    check_tokenizer(
        manifest["seal"],
        encoder,
        resolve_templates(encoder.tokenizer, None),
        manifest["config"]["tokenizer"],
    )


def _find_row_faults(splits: datasets.DatasetDict, manifest: dict[str, Any]) -> Iterator[str]:
    settings = manifest["seal"]["settings"]
    expected = row_features(settings["columns"])
    digests: list[bytes] = []
    found: dict[str, int] = {}
    for split, rows in splits.items():
        if rows.features != expected:
            names = sorted(set(rows.features) ^ set(expected)) or "types"
            yield f"{split}: columns differ from the schema ({names})"
            return
        for start in range(0, len(rows), _BATCH_ROWS):
            end = min(start + _BATCH_ROWS, len(rows))
            try:
                table: pa.Table = cast("Any", rows.with_format("arrow"))[start:end]
                # A damaged offset would be followed to anywhere in memory.
                table.validate(full=True)
            except (OSError, ValueError, pa.ArrowException) as error:
                yield f"{split}: rows {start} to {end - 1}: {error}"
                return
            if (misplaced := _find_misplaced(table, str(split), manifest["seal"])) is not None:
                yield f"{split}: row {start + misplaced}: {_MISPLACED}"
                return
            fault = _find_first_fault(table, settings["max_len"], manifest["seal"])
            if fault is not None:
                yield f"{split}: row {start + fault[0]}: {fault[1]}"
                return
            digests += digest_rows(table, [str(split)] * table.num_rows)
        found[str(split)] = len(rows)
    counts = manifest["counts"]
    if (rows_seen := sum(found.values())) != counts["rows"]:
        yield f"{MANIFEST}: counts {counts['rows']} rows, found {rows_seen}"
    elif found != {
        split: rows for split, rows in counts["rows_by_split"].items() if rows or split in found
    }:
        yield f"{MANIFEST}: counts {counts['rows_by_split']} rows by split, found {found}"
    if (digest := sum_digests(digests)) != manifest["digest"]:
        yield f"{MANIFEST}: digest {manifest['digest'][:16]}…, the rows give {digest[:16]}…"


def _find_misplaced(table: pa.Table, split: str, seal: dict[str, Any]) -> int | None:
    """Return the first row that stands among those to be trained and is not to be, or the other way."""
    if "preference" not in table.column_names or seal["format"] < _REJECTED_APART:
        return None
    is_worse: Any = _compute.equal(table.column("preference"), REJECTED)
    wrong = is_worse.to_numpy(zero_copy_only=False) != (split == REJECTED)
    return int(wrong.argmax()) if wrong.any() else None


def _find_first_fault(
    table: pa.Table, max_len: int, seal: dict[str, Any]
) -> tuple[int, str] | None:
    """Return the place and the fault of the first row that breaks an invariant."""
    faults = list(_find_faults(table, max_len, seal["tokenizer"]["vocabulary_size"]))
    return min(faults, key=lambda fault: fault[0]) if faults else None


def _find_faults(table: pa.Table, max_len: int, vocabulary: int) -> Iterator[tuple[int, str]]:
    """Yield, for each invariant that is broken, the first row that breaks it and the fault."""
    lists = [split_lists(table, name) for name in TOKEN_COLUMNS]
    # A slice of a larger table has the values of all of it.
    values: list[NDArray[Any]] = [flat[ends[0] : ends[-1]] for flat, ends in lists]
    offsets = [ends - ends[0] for _, ends in lists]
    lengths = np.stack([np.diff(each) for each in offsets])
    contexts, totals = (
        np.asarray(table.column(name), np.int64) for name in ("context_len", "total_len")
    )
    for row in _first(np.any(lengths != totals, axis=0)):
        found = lengths[:, row].tolist()
        yield row, f"lengths differ: {found[0]} ids, {found[1]} labels, total_len {totals[row]}"
        # Nothing below can be told where rows do not line up.
        return
    for row in _first((contexts < 1) | (contexts >= totals)):
        yield (
            row,
            f"context_len {contexts[row]} is not within 1 and total_len {totals[row]} - 1",
        )
    for row in _first(totals > max_len):
        yield row, f"{totals[row]} tokens are over max_len {max_len}"
    ids, labels, mask = values
    starts = offsets[0]

    def rows_of(is_wrong: NDArray[np.bool_]) -> Iterator[int]:
        for token in _first(is_wrong):
            yield int(np.searchsorted(starts, token, side="right")) - 1

    for row in rows_of((ids < 0) | (ids >= vocabulary)):
        yield row, f"an id is outside the vocabulary of {vocabulary}"
    position = np.arange(len(ids)) - np.repeat(starts[:-1], totals)
    is_context = position < np.repeat(contexts, totals)
    for row in rows_of(labels != np.where(is_context, IGNORE_LABEL, ids)):
        yield row, "labels are not -100 on the context and the ids after it"
    for row in rows_of(mask != 1):
        yield row, "attention_mask is not ones"
    if "context_hash" in table.column_names:
        hashes: list[str] = table.column("context_hash").to_pylist()
        ends = starts[:-1] + contexts
        for row, (start, end) in enumerate(zip(starts[:-1], ends, strict=True)):
            if hashes[row] != hash_context(ids[start:end]):
                yield row, "context_hash is not that of the context"
                break
        flags: list[list[str]] = table.column("flags").to_pylist()
        for row in _first(np.array([not FLAGS.issuperset(each) for each in flags], np.bool_)):
            yield row, f"unknown flags {sorted(set(flags[row]) - FLAGS)}"


def _first(is_wrong: NDArray[np.bool_]) -> Iterator[int]:
    """Yield the first place that is wrong, if there is one."""
    if is_wrong.any():
        yield int(is_wrong.argmax())
