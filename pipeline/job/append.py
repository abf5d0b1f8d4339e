"""Adding to a saved set: what of it stays, and what the manifest of the larger set says.

Earlier rows are kept byte for byte and come first; the digest is that of one run over everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
import pyarrow as pa

from pipeline.errors import SealMismatch, UsageError
from pipeline.job.duplicates import reject_replaced
from pipeline.row_table import digest_rows, sum_digests
from pipeline.saved import load, read_manifest
from pipeline.seal import hash_seal
from pipeline.types import ROW_SCHEMA, Reject

EXAMPLES = "examples.sha256"
"""File of a set that names its examples: the sha256 of each line, and the id as JSON."""

_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class EarlierSet:
    """A set that is appended to: its splits, manifest, rejects, and the digest of each example."""

    splits: datasets.DatasetDict
    manifest: dict[str, Any]
    rejects: tuple[Reject, ...]
    examples: dict[str, bytes]


def open_earlier_set(folder: Path, seal: Mapping[str, Any]) -> EarlierSet:
    """Return the set in ``folder``, whose seal must be that of the new rows but for the input.

    Raises `UsageError` where there is no set to append to, `SealMismatch` with the key that differs.
    """
    if not folder.is_dir():
        raise UsageError(f"append: {folder}: no set there; expected one, or leave append out")
    manifest = read_manifest(folder)
    for name in sorted(set(seal) - {"input", "key"}):
        _compare_seals(f"seal.{name}", manifest["seal"].get(name), seal[name])
    if manifest["config"]["columns"] == "train":
        raise UsageError(
            f"append: {folder}: columns: train keeps no ids; append needs columns: full"
        )
    # Lines end at "\n" alone: an id or a reason may hold other line ends.
    *rejects, _ = (folder / "rejects.jsonl").read_text(encoding="utf-8").split("\n")
    return EarlierSet(
        splits=load(folder),
        manifest=manifest,
        rejects=tuple(Reject(**json.loads(line)) for line in rejects),
        examples=read_examples(folder),
    )


def drop_replaced(earlier: EarlierSet, replaced: Mapping[str, str]) -> EarlierSet:
    """Return the set without the rows and examples of ``replaced`` ids, which are rejects then.

    ``replaced`` maps each id onto the ``file:line`` of the example that takes its place.
    """
    if not replaced:
        return earlier
    splits: dict[Any, datasets.Dataset] = {}
    rejects = list(earlier.rejects)
    for name, rows in earlier.splits.items():
        ids, sources = (rows.data.column(column).to_pylist() for column in ("id", "source"))
        splits[name] = rows.select([at for at, id_ in enumerate(ids) if id_ not in replaced])
        rejects += [
            reject_replaced(id_, source, replaced[id_])
            for id_, source in zip(ids, sources, strict=True)
            if id_ in replaced
        ]
    examples = {id_: digest for id_, digest in earlier.examples.items() if id_ not in replaced}
    manifest = {**earlier.manifest, "digest": sum_digests(_digest_splits(splits))}
    return EarlierSet(datasets.DatasetDict(splits), manifest, tuple(rejects), examples)


def join_splits(earlier: EarlierSet, new: datasets.DatasetDict) -> datasets.DatasetDict:
    """Return the earlier rows followed by the new ones, split by split."""
    return datasets.DatasetDict(
        {
            name: datasets.concatenate_datasets([earlier.splits[name], rows])
            for name, rows in new.items()
        }
    )


def read_tables(
    splits: Mapping[Any, datasets.Dataset], columns: Sequence[str]
) -> Iterator[tuple[str, pa.Table]]:
    """Yield the rows of each split in batches, with its name: those that are selected alone."""
    for name, rows in splits.items():
        arrow: Any = rows.select_columns(list(columns)).with_format("arrow")
        for start in range(0, len(rows), _BATCH_ROWS):
            yield str(name), arrow[start : start + _BATCH_ROWS]


def _digest_splits(splits: Mapping[Any, datasets.Dataset]) -> Iterator[bytes]:
    for name, table in read_tables(splits, ROW_SCHEMA.names):
        yield from digest_rows(table, [name] * table.num_rows)


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


def write_examples(folder: Path, examples: Iterable[tuple[str, bytes]]) -> None:
    """Write which examples are in the set, one a line."""
    lines = [f"{digest.hex()}  {json.dumps(id_)}\n" for id_, digest in examples]
    (folder / EXAMPLES).write_text("".join(lines), encoding="utf-8")


def read_examples(folder: Path) -> dict[str, bytes]:
    """Return the sha256 of the line of each example of a set, by id."""
    text = (folder / EXAMPLES).read_text(encoding="utf-8")
    pairs = (line.split("  ", 1) for line in text.splitlines())
    return {json.loads(id_): bytes.fromhex(digest) for digest, id_ in pairs}
