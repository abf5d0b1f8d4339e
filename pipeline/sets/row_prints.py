"""Hashes of rows, by which the same row is found in two builds and what changed in it is told."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import datasets
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.rows.table import split_lists
from pipeline.types import IGNORE_LABEL, TOKEN_COLUMNS

_BATCH_ROWS: Final = 512
KEY: Final = ("id", "decision_idx", "preference")
ASPECTS: Final[Mapping[str, tuple[str, ...]]] = {
    "tokens": ("input_ids",),
    "boundary": ("context_len",),
    "labels": ("labels", "attention_mask"),
    "flags": ("flags",),
    "shortening": ("dropped_tokens", "dropped_messages"),
    "weight": ("weight",),
    "notes": ("reason", "memories"),
    "origin": ("conversation", "source"),
    "split": (),
}
"""What can change in a row, and the columns that say so; columns that follow from these are left out."""

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RowPrints:
    """Hashes of the rows of a set: ``keys`` [rows, 2] says which row it is, ``aspects`` what it holds."""

    keys: Hashes
    aspects: Hashes

    @classmethod
    def of(
        cls, splits: datasets.DatasetDict, aspects: Sequence[str], *, has_ids: bool
    ) -> RowPrints:
        """Return the hashes of the rows of all splits, in order; ``aspects`` are of `ASPECTS`."""
        keys = [np.empty((0, 2), np.uint64)]
        prints = [np.empty((0, len(aspects)), np.uint64)]
        place = 0
        names = {*KEY, *(name for aspect in aspects for name in ASPECTS[aspect])}
        for split, table in _read_batches(splits, names):
            places = np.arange(place, place + table.num_rows, dtype=np.uint64)
            place += table.num_rows
            named = _hash_columns(table, KEY, 16) if has_ids else np.repeat(places, 2)
            keys.append(named.reshape(-1, 2))
            columns = [
                _hash_columns(table, ASPECTS[name])
                if ASPECTS[name]
                else np.repeat(_hash_all([split.encode()]), table.num_rows)
                for name in aspects
            ]
            prints.append(np.stack(columns, axis=1))
        return cls(np.concatenate(keys), np.concatenate(prints))


def _read_batches(splits: datasets.DatasetDict, names: set[str]) -> Iterator[tuple[str, pa.Table]]:
    for split, rows in splits.items():
        kept = rows.select_columns([name for name in rows.column_names if name in names])
        tables: Any = kept.with_format("arrow")
        for start in range(0, len(kept), _BATCH_ROWS):
            yield str(split), tables[start : start + _BATCH_ROWS]


def _hash_columns(table: pa.Table, names: Sequence[str], size: int = 8) -> Hashes:
    """Return a hash of each row over some columns, all of them lists of tokens or none."""
    if not set(TOKEN_COLUMNS).isdisjoint(names):
        lists = [_list_bytes(table, name) for name in names]
        return _hash_all(map(_join_sized, zip(*lists, strict=True)), size)
    values = [table.column(name).to_pylist() for name in names]
    return _hash_all((repr(row).encode() for row in zip(*values, strict=True)), size)


def _list_bytes(table: pa.Table, name: str) -> list[bytes]:
    """Return the ids of each row as bytes; of labels and mask only what does not go without saying.

    So a longer context is no change of the labels, and one token that is trained is.
    """
    values, offsets = split_lists(table, name)
    rows = (values[start:end] for start, end in pairwise(offsets))
    if name == "attention_mask":
        return [b"" if row.all() else row.tobytes() for row in rows]
    if name == "labels":
        rows = (row[np.argmax(row != IGNORE_LABEL) :] for row in rows)
    return [row.tobytes() for row in rows]


def _join_sized(parts: Sequence[bytes]) -> bytes:
    """Return bytes that are equal for equal parts alone."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def _hash_all(rows: Iterable[bytes], size: int = 8) -> Hashes:
    """Return a hash of ``size`` bytes of each row, as numbers of 8 bytes."""
    digests = b"".join(hashlib.blake2b(row, digest_size=size).digest() for row in rows)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def match_rows(before: Hashes, after: Hashes) -> tuple[Places, Places]:
    """Return pairs of rows with equal keys, as numbers in each set, in the order of the first.

    Of several rows with one key the first goes with the first, the second with the second.
    """
    keys = np.concatenate([_with_turn(before), _with_turn(after)])
    # The sort is stable: of a pair, the row of the first set comes first.
    order = np.lexsort(keys.T)
    firsts = np.flatnonzero((keys[order][1:] == keys[order][:-1]).all(axis=1))
    ours, theirs = order[firsts], order[firsts + 1] - len(before)
    by_place = np.argsort(ours)
    return ours[by_place], theirs[by_place]


def _with_turn(keys: Hashes) -> Hashes:
    """Return keys with a third number: how many rows before have the same one."""
    order = np.lexsort(keys.T)
    is_new = np.ones(len(keys), np.bool_)
    is_new[1:] = (keys[order][1:] != keys[order][:-1]).any(axis=1)
    starts = np.flatnonzero(is_new)
    turns = np.empty((len(keys), 1), np.uint64)
    turns[order, 0] = np.arange(len(keys)) - np.repeat(
        starts, np.diff(np.append(starts, len(keys)))
    )
    return np.concatenate([keys, turns], axis=1)
