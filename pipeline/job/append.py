"""Adding to a saved set: what of it stays, and what the manifest of the larger set says.

Earlier rows are kept byte for byte and come first; the digest is that of one run over everything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from pipeline.errors import DataRefused, SealMismatch, UsageError, excerpt_of
from pipeline.job.duplicates import reject_replaced
from pipeline.job.omit import keep_rows
from pipeline.rows.table import DIGEST_MODULUS, digest_rows, sum_digests
from pipeline.sets.arrow_file import read_table
from pipeline.sets.counts import COUNTED, RowCounts
from pipeline.sets.folder import PlacedFile, find_row_files
from pipeline.sets.load import check_files
from pipeline.sets.manifest import EXAMPLES, left_out_of, read_manifest
from pipeline.sets.row_files import check_row_files
from pipeline.sets.seal import hash_seal
from pipeline.types import Reject


@dataclass(frozen=True, slots=True)
class EarlierSet:
    """A set that is appended to: its folder and manifest, its files of rows by split, its examples.

    ``replaced`` are rejects that it gains, because a later example takes their place.
    """

    folder: Path
    manifest: dict[str, Any]
    rows: dict[str, list[PlacedFile]]
    examples: dict[str, bytes]
    counts: RowCounts
    replaced: list[Reject] = field(default_factory=list[Reject])


def open_earlier_set(folder: Path, seal: Mapping[str, Any]) -> EarlierSet:
    """Return the set in ``folder``, whose seal must be that of the new rows but for the input.

    Raises `UsageError` where there is no set to append to, `SealMismatch` with the key that differs.
    """
    if not folder.is_dir():
        raise UsageError(f"append: {folder}: no set there; expected one, or leave append out")
    manifest = read_manifest(folder)
    for name in sorted(set(seal) - {"input", "key", "encoder"}):
        _compare_seals(f"seal.{name}", manifest["seal"].get(name), seal[name])
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
    check_row_files(folder)
    return EarlierSet(
        folder=folder,
        manifest=manifest,
        rows={
            split: find_row_files(folder, split, manifest["files"])
            for split in manifest["counts"]["rows_by_split"]
        },
        examples=read_examples(folder),
        counts=RowCounts.from_described(manifest["counts"]),
    )


def drop_replaced(earlier: EarlierSet, replaced: Mapping[str, str], work: Path) -> EarlierSet:
    """Return the set without the rows and examples of ``replaced`` ids, which are rejects then.

    ``replaced`` maps each id onto the ``file:line`` of the example that takes its place. The files
    that held such rows are written again, in ``work``.
    """
    if not replaced:
        return earlier
    rejects: list[Reject] = []
    rows: dict[str, list[PlacedFile]] = {}
    counts = RowCounts()
    counts.merge(earlier.counts)
    digest = int(earlier.manifest["digest"], 16)
    for split, files in earlier.rows.items():
        rows[split] = []
        for placed in files:
            kept = work / f"earlier-{split}-{placed.file.name}"
            file, dropped = keep_rows(placed.path, _is_kept(placed.path, replaced), kept)
            rows[split].append(PlacedFile(kept, file) if dropped.num_rows else placed)
            digest -= int(sum_digests(digest_rows(dropped, [split] * dropped.num_rows)), 16)
            counts.add(dropped.select(COUNTED), -1)
            ids, sources = (dropped.column(name).to_pylist() for name in ("id", "source"))
            rejects += [
                reject_replaced(id_, source, replaced[id_])
                for id_, source in zip(ids, sources, strict=True)
            ]
    return replace(
        earlier,
        manifest={**earlier.manifest, "digest": f"{digest % DIGEST_MODULUS:064x}"},
        rows=rows,
        examples={id_: line for id_, line in earlier.examples.items() if id_ not in replaced},
        counts=counts,
        replaced=rejects,
    )


def _is_kept(path: Path, replaced: Mapping[str, str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    ids = read_table(path, ["id"]).column("id").to_pylist()
    return np.array([id_ not in replaced for id_ in ids], np.bool_)


def extend_seal(made: Mapping[str, Any], seal: Mapping[str, Any]) -> dict[str, Any]:
    """Return the seal of both inputs, earlier files first."""
    joined = {**seal, "input": [*made["input"], *seal["input"]]}
    return {**joined, "key": hash_seal(joined)}


def _compare_seals(key: str, made: Any, found: Any) -> None:
    """Raise `SealMismatch` for the innermost key at which two parts of a seal differ."""
    if made == found:
        return
    if isinstance(made, dict) and isinstance(found, dict):
        parts = cast("tuple[dict[str, Any], dict[str, Any]]", (made, found))
        for name in sorted(set(parts[0]) | set(parts[1])):
            _compare_seals(f"{key}.{name}", parts[0].get(name), parts[1].get(name))
    remedy = "append with the settings of the set, or prepare everything again"
    raise SealMismatch(key, made, found, remedy)


def read_examples(folder: Path) -> dict[str, bytes]:
    """Return the sha256 of the line of each example of a set, by id. Raises `DataRefused`."""
    path = folder / EXAMPLES
    try:
        text = path.read_text(encoding="utf-8")
        pairs = (line.split("  ", 1) for line in text.splitlines())
        examples = {json.loads(id_): bytes.fromhex(digest) for digest, id_ in pairs}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataRefused(
            f"append: {path}: {excerpt_of(str(error))}; expected a sha256 and an id on each line; "
            "prepare the set again"
        ) from error
    if not all(isinstance(id_, str) and len(digest) == 32 for id_, digest in examples.items()):
        raise DataRefused(
            f"append: {path}: expected a sha256 and an id as text on each line; prepare the set again"
        )
    return examples
