"""Read, map, save, seal: the set of a job, written beside its target and put in its place at the end.

One batched ``Dataset.map`` turns lines into rows, so a target is always a whole set.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa

from pipeline.config import PrepareConfig
from pipeline.errors import DataRefused, UsageError
from pipeline.publish import MANIFEST, Target
from pipeline.row_map import ENTRY_SCHEMA, LINE_DIGEST, REJECT, ROW_DIGEST, SPLIT, RowMapper
from pipeline.row_table import sum_digests
from pipeline.rows import RowBuilder
from pipeline.seal import complete_seal, hash_file_bytes
from pipeline.source import FileRecord, SourceFile, load_lines
from pipeline.types import NUMERIC_COLUMNS, ROW_SCHEMA, Reject, feature_of
from pipeline.view.card import write_card

logger = logging.getLogger(__name__)

# Below this many bytes of text a second process costs more than it saves.
_BYTES_PER_WORKER = 4 << 20


def build_set(
    config: PrepareConfig, target: Target, files: Sequence[SourceFile], seal: dict[str, Any]
) -> dict[str, Any]:
    """Build and publish the set of ``files`` at ``target``; return its manifest.

    Raises what `pipeline.job.prepare` raises; ``target`` is then as it was.
    """
    builder = RowBuilder(config)
    loaded = load_lines(files, target.work / "lines.arrow")
    seal = complete_seal(seal, builder.encoder, builder.templates, loaded.records)
    lines = sum(record.lines for record in loaded.records)
    if not lines:
        raise UsageError(
            f"input: {', '.join(config.input)}: no line to read; expected JSONL examples"
        )
    entries = _map_lines(config, target, loaded.dataset, builder, seal["key"])
    duplicates = _find_duplicates(entries)
    rejects = [*loaded.rejects, *_read_rejects(entries), *duplicates.values()]
    rejects.sort(key=lambda reject: (reject.file, reject.line))
    _judge(config, target, rejects, lines)
    is_row = np.equal(entries.data.column(REJECT).is_null().to_numpy(), True)
    is_row[list(duplicates)] = False
    kept = entries.data.filter(pa.array(is_row))
    splits = _select_splits(entries, is_row, config)
    _save(target, splits)
    manifest = {
        "digest": sum_digests(kept.column(ROW_DIGEST).to_pylist()),
        "seal": seal,
        "counts": _count(loaded.records, lines, splits, rejects, kept),
        "config": config.to_dict(),
    }
    _finish(target, manifest, rejects)
    target.rejects.unlink(missing_ok=True)
    return manifest


def _map_lines(
    config: PrepareConfig, target: Target, lines: datasets.Dataset, builder: RowBuilder, key: str
) -> datasets.Dataset:
    """Return one entry per line, in order: the one pass over the data."""
    size = lines.data.nbytes
    workers = min(config.num_proc, max(1, size // _BYTES_PER_WORKER), max(1, len(lines)))
    return lines.with_format("arrow").map(
        RowMapper(config, builder),
        batched=True,
        batch_size=config.batch_size,
        features=datasets.Features({field.name: feature_of(field.type) for field in ENTRY_SCHEMA}),
        remove_columns=lines.column_names,
        new_fingerprint=key[:32],
        cache_file_name=str(target.work / "entries.arrow"),
        load_from_cache_file=False,
        num_proc=workers if workers > 1 else None,
        desc="rows",
    )


def _read_rejects(entries: datasets.Dataset) -> list[Reject]:
    column = entries.data.column(REJECT)
    return [Reject(**json.loads(text)) for text in column.to_pylist() if text is not None]


def _find_duplicates(entries: datasets.Dataset) -> dict[int, Reject]:
    """Return a reject for each row whose id an earlier row already has, by place in ``entries``."""
    first: dict[str, tuple[str, bytes]] = {}
    duplicates: dict[int, Reject] = {}
    names = ("id", "source", REJECT, LINE_DIGEST)
    start = 0
    for batch in entries.data.select(names).to_batches():
        columns = [batch.column(name).to_pylist() for name in names]
        for index, (id_, source, reject, digest) in enumerate(zip(*columns, strict=True), start):
            if reject is not None:
                continue
            earlier_source, earlier_digest = first.setdefault(id_, (source, digest))
            if earlier_source == source:
                continue
            kind = "the same line again" if earlier_digest == digest else "another example"
            file, _, line = source.rpartition(":")
            duplicates[index] = Reject(
                file,
                int(line),
                id_,
                "duplicate_id",
                f"id: {earlier_source} has it already ({kind}); expected an id once; "
                "rename it, or remove one of the two",
                id_[:80],
            )
        start += batch.num_rows
    return duplicates


def _judge(config: PrepareConfig, target: Target, rejects: Sequence[Reject], lines: int) -> None:
    """Refuse the data where more lines were rejected than the settings allow."""
    if len(rejects) <= config.max_reject_rate * lines:
        return
    write_rejects(target.rejects, rejects)
    first = rejects[0]
    codes = ", ".join(f"{code} {n}" for code, n in Counter(r.code for r in rejects).most_common())
    raise DataRefused(
        f"{len(rejects)} of {lines} lines were rejected ({codes}); nothing was published. "
        f"First: {first.file}:{first.line} (id {first.id!r}): {first.code}: {first.reason}. "
        f"All are in {target.rejects}; mend them, or allow a share with max_reject_rate"
    )


def _select_splits(
    entries: datasets.Dataset, is_row: np.ndarray[Any, np.dtype[np.bool_]], config: PrepareConfig
) -> datasets.DatasetDict:
    """Return the rows by split, in the order of the input."""
    names = ["train", "validation"] if config.validation_fraction else ["train"]
    columns: list[str] = [*(NUMERIC_COLUMNS if config.columns == "train" else ROW_SCHEMA.names)]
    split_of = np.asarray(entries.data.column(SPLIT).to_pylist(), dtype=object)
    splits: dict[str, datasets.Dataset] = {}
    for name in names:
        is_chosen = is_row & (split_of == name)
        rows = entries.with_format(None)
        if not is_chosen.all():
            rows = rows.select(np.flatnonzero(is_chosen).tolist())
        splits[name] = rows.select_columns(columns)
    return datasets.DatasetDict(cast("dict[Any, datasets.Dataset]", splits))


def _save(target: Target, splits: datasets.DatasetDict) -> None:
    # Of no rows datasets would write no file, which it then cannot open.
    shards: Any = {name: None if len(rows) else 1 for name, rows in splits.items()}
    try:
        splits.save_to_disk(str(target.staging), num_shards=shards)
    except OSError as error:
        needed = sum(rows.data.nbytes for rows in splits.values())
        raise UsageError(
            f"output: {target.path}: {error.strerror or error}; about {needed} bytes are needed "
            f"in {target.path.parent}; nothing was changed there"
        ) from error


def _count(
    records: Sequence[FileRecord],
    lines: int,
    splits: datasets.DatasetDict,
    rejects: Sequence[Reject],
    kept: pa.Table,
) -> dict[str, Any]:
    """Return what the manifest counts, by code and flag, and tokens in all.

    Where each line has one decision point, lines = rows + rejects; else points, which count a line
    that is no example as one, = rows + rejects.
    """
    flags = Counter(flag for row in kept.column("flags").to_pylist() for flag in row)
    total, context, dropped = (
        np.asarray(kept.column(name)) for name in ("total_len", "context_len", "dropped_tokens")
    )
    shortened = int(np.count_nonzero(dropped))
    return {
        "lines": lines,
        "blank_lines": sum(record.blank_lines for record in records),
        "points": kept.num_rows + len(rejects),
        "rows": kept.num_rows,
        "rows_by_split": {str(name): len(rows) for name, rows in splits.items()},
        "rejects": len(rejects),
        "by_code": dict(sorted(Counter(reject.code for reject in rejects).items())),
        "by_flag": dict(sorted(flags.items())),
        "rows_as_served": kept.num_rows - shortened,
        "rows_shortened": shortened,
        "tokens": {
            "total": int(total.sum()),
            "context": int(context.sum()),
            "continuation": int(total.sum() - context.sum()),
            "dropped": int(dropped.sum()),
        },
        "dropped_messages": int(np.asarray(kept.column("dropped_messages")).sum()),
        "files": {
            record.name: {"lines": record.lines, "bytes": record.bytes} for record in records
        },
    }


def _finish(target: Target, manifest: dict[str, Any], rejects: Sequence[Reject]) -> None:
    """Write what stands beside the splits, the manifest last, and publish."""
    write_rejects(target.staging / "rejects.jsonl", rejects)
    write_card(target.staging, manifest)
    manifest["files"] = {
        path.relative_to(target.staging).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hash_file_bytes(path),
        }
        for path in sorted(target.staging.rglob("*"))
        if path.is_file()
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False, sort_keys=False) + "\n"
    (target.staging / MANIFEST).write_text(text, encoding="utf-8")
    target.publish()
    logger.info("published %s: %s rows", target.path, manifest["counts"]["rows"])


def write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    """Write one JSON line per reject, in the order of the input."""
    lines = [json.dumps(reject.to_dict(), ensure_ascii=False) + "\n" for reject in rejects]
    path.write_text("".join(lines), encoding="utf-8")
