"""Adding to a saved set: what of it stays, and what the seal of the larger set says.

Earlier rows are kept as they are and come first; the digest is that of one run over everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np

from pipeline.errors import DataRefused, SealMismatch, UsageError, excerpt_of
from pipeline.job.duplicates import reject_replaced
from pipeline.rows.line_mapper import ShapeCounts
from pipeline.rows.table import DIGEST_MODULUS, digest_rows, sum_digests
from pipeline.sets.counts import RowCounts, count_rows
from pipeline.sets.load import check_files, open_splits
from pipeline.sets.manifest import EXAMPLES, REJECTS, left_out_of, read_manifest
from pipeline.sets.seal import find_differences, hash_seal
from pipeline.types import Reject


@dataclass(frozen=True, slots=True)
class EarlierSet:
    """A set that is appended to: its manifest, its rows by split, its rejects, its examples by id."""

    manifest: dict[str, Any]
    splits: Mapping[str, datasets.Dataset]
    examples: dict[str, bytes]
    counts: RowCounts
    digest: str
    rejects: list[Reject]

    @property
    def shapes(self) -> ShapeCounts:
        """Shapes and unread keys of its lines."""
        return ShapeCounts.from_described(self.manifest["counts"])

    def without(self, replaced: Mapping[str, str]) -> EarlierSet:
        """Return the set without the rows and examples of ``replaced`` ids, which are rejects then.

        ``replaced`` maps each id onto the ``file:line`` of the example that takes its place.
        """
        if not replaced:
            return self
        counts, digest = RowCounts(), int(self.digest, 16)
        splits: dict[str, datasets.Dataset] = {}
        rejects: list[Reject] = []
        for name, rows in self.splits.items():
            table = cast("Any", rows).data.table
            ids: list[str] = table.column("id").to_pylist()
            is_kept = np.array([id_ not in replaced for id_ in ids], np.bool_)
            kept, gone = np.flatnonzero(is_kept), np.flatnonzero(~is_kept)
            splits[name] = rows.select(kept)
            counts.merge(count_rows(table, kept))
            dropped = table.take(gone)
            digest -= int(sum_digests(digest_rows(dropped, [name] * dropped.num_rows)), 16)
            for row in dropped.select(["id", "source"]).to_pylist():
                rejects.append(reject_replaced(row["id"], row["source"], replaced[row["id"]]))
        return replace(
            self,
            splits=splits,
            examples={id_: line for id_, line in self.examples.items() if id_ not in replaced},
            counts=counts,
            digest=f"{digest % DIGEST_MODULUS:064x}",
            rejects=[*self.rejects, *rejects],
        )


def open_earlier_set(folder: Path, seal: Mapping[str, Any]) -> EarlierSet:
    """Return the set in ``folder``, whose seal must be that of the new rows but for the input.

    Raises `UsageError` where there is no set to append to, `SealMismatch` with the key that differs,
    `DataRefused` for a set that is damaged.
    """
    if not folder.is_dir():
        raise UsageError(f"append: {folder}: no set there; expected one, or leave append out")
    manifest = read_manifest(folder)
    compared = {name: seal[name] for name in sorted(set(seal) - {"input", "key", "encoder"})}
    difference = next(find_differences("seal", manifest["seal"], compared), None)
    if difference is not None:
        remedy = "append with the settings of the set, or prepare everything again"
        raise SealMismatch(*difference, remedy)
    if manifest["config"]["columns"] == "train":
        raise UsageError(
            f"append: {folder}: columns: train keeps no ids; append needs columns: full"
        )
    if any(left_out_of(manifest).values()):
        raise UsageError(
            f"append: {folder}: was pulled without its provenance, which append needs; "
            "append to the set that was pushed"
        )
    check_files(folder, manifest)
    return EarlierSet(
        manifest=manifest,
        splits=cast("Mapping[str, datasets.Dataset]", open_splits(folder)),
        examples=dict(_read_examples(folder / EXAMPLES)),
        counts=RowCounts.from_described(manifest["counts"]),
        digest=manifest["digest"],
        rejects=list(_read_rejects(folder / REJECTS)),
    )


def extend_seal(made: Mapping[str, Any], seal: Mapping[str, Any]) -> dict[str, Any]:
    """Return the seal of both inputs, earlier files first."""
    joined = {**seal, "input": [*made["input"], *seal["input"]]}
    return {**joined, "key": hash_seal(joined)}


def _read_examples(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the id of each example of a set, and what tells it."""
    for line in _read_lines(path):
        try:
            digest, id_ = line.split("  ", 1)
            example = json.loads(id_), bytes.fromhex(digest)
            if not isinstance(example[0], str) or len(example[1]) != 32:
                raise ValueError("no id as text behind a sha256")
        except (ValueError, RecursionError) as error:
            raise _damaged(path, error, "a sha256 and an id as text on each line") from error
        yield example


def _read_rejects(path: Path) -> Iterator[Reject]:
    for line in _read_lines(path):
        try:
            yield Reject(**json.loads(line))
        except (ValueError, TypeError, AssertionError, RecursionError) as error:
            raise _damaged(path, error, "a reject on each line") from error


def _read_lines(path: Path) -> list[str]:
    try:
        # Lines end at "\n" alone: an id or a reason may hold other line ends.
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, ValueError) as error:
        raise _damaged(path, error, "a file of the set") from error


def _damaged(path: Path, error: Exception, expected: str) -> DataRefused:
    return DataRefused(
        f"append: {path}: {excerpt_of(str(error))}; expected {expected}; prepare the set again"
    )
