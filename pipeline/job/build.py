"""Read, map, save, seal: the set of a job, written beside its target and put in its place at the end.

One batched ``Dataset.map`` turns lines into rows, so a target is always a whole set.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa

from pipeline.config import PrepareConfig
from pipeline.errors import DataRefused, UsageError
from pipeline.job.append import (
    EarlierSet,
    drop_replaced,
    extend_seal,
    join_splits,
    open_earlier_set,
    read_tables,
    write_examples,
)
from pipeline.job.counts import COUNTED, count_rows, write_rejects
from pipeline.job.duplicates import Entry, find_duplicates
from pipeline.job.publish import MANIFEST, Target
from pipeline.job.row_map import ENTRY_SCHEMA, LINE_DIGEST, REJECT, ROW_DIGEST, SPLIT, RowMapper
from pipeline.row_table import sum_digests
from pipeline.rows import RowBuilder
from pipeline.seal import complete_seal, hash_file_bytes
from pipeline.source.line_formats import name_formats
from pipeline.source.lines import SourceFile
from pipeline.source.tables import load_table_lines
from pipeline.types import NUMERIC_COLUMNS, ROW_SCHEMA, Reject, feature_of
from pipeline.view.card import write_card

logger = logging.getLogger(__name__)

# Below this many bytes of text a second process costs more than it saves.
_BYTES_PER_WORKER = 4 << 20


def build_set(
    config: PrepareConfig, target: Target, files: Sequence[SourceFile], seal: dict[str, Any]
) -> dict[str, Any]:
    """Build and publish the set of ``files`` at ``target``; return its manifest.

    Raises what `pipeline.job.prepare.prepare` raises; ``target`` is then as it was.
    """
    builder = RowBuilder(config)
    loaded = load_table_lines(files, target.work / "lines.arrow")
    seal = complete_seal(seal, builder.encoder, builder.templates, loaded.records)
    earlier = open_earlier_set(target.path, seal) if config.append else None
    lines = sum(record.lines for record in loaded.records)
    if not lines:
        raise UsageError(
            f"input: {', '.join(config.input)}: no line to read; expected JSONL examples"
        )
    formats = name_formats(loaded.dataset, config.format)
    for file, name in formats.items():
        logger.info("%s: format %s", file, name)
    mapper = RowMapper(config, formats, builder)
    entries = _map_lines(config, target, loaded.dataset, mapper, seal["key"])
    duplicates = find_duplicates(
        _rows_in(entries), config.on_duplicate, earlier.examples if earlier else {}
    )
    known = _sources_at(entries, duplicates.already_there)
    rejects = [
        *loaded.rejects,
        *_read_rejects(entries, known),
        *duplicates.rejects.values(),
    ]
    rejects.sort(key=lambda reject: (reject.file, reject.line))
    faults = len(rejects) - len(duplicates.rejects) + len(duplicates.faults)
    _judge(config, target, rejects, faults, lines, len(entries) + len(loaded.rejects))
    is_row = np.equal(entries.data.column(REJECT).is_null().to_numpy(), True)
    is_row[duplicates.places] = False
    if earlier and not is_row.any() and not rejects:
        return earlier.manifest
    kept = entries.data.filter(pa.array(is_row))
    made = _Made(
        splits=_select_splits(entries, is_row, config),
        rejects=rejects,
        faults=faults,
        examples=dict(
            zip(*(kept.column(name).to_pylist() for name in ("id", LINE_DIGEST)), strict=True)
        ),
        digests=kept.column(ROW_DIGEST).to_pylist(),
        tables=[kept],
        lines=lines - len(known),
        blank_lines=sum(record.blank_lines for record in loaded.records),
        seal=seal,
        formats=formats,
    )
    if earlier:
        made = made.after(drop_replaced(earlier, duplicates.replaced))
    manifest = _write(config, target, made)
    target.publish()
    target.rejects.unlink(missing_ok=True)
    logger.info("published %s: %s rows", target.path, manifest["counts"]["rows"])
    return manifest


@dataclass(frozen=True, slots=True)
class _Made:
    """A set before it is written: its splits, what goes beside them, and what is counted."""

    splits: datasets.DatasetDict
    rejects: list[Reject]
    faults: int
    examples: dict[str, bytes]
    digests: list[bytes]
    tables: list[pa.Table]
    lines: int
    blank_lines: int
    seal: dict[str, Any]
    formats: dict[str, str]

    def after(self, earlier: EarlierSet) -> _Made:
        """Return the earlier set with this one behind it."""
        counts = earlier.manifest["counts"]
        return _Made(
            splits=join_splits(earlier, self.splits),
            rejects=[*earlier.rejects, *self.rejects],
            faults=counts["faults"] + self.faults,
            examples={**earlier.examples, **self.examples},
            digests=[bytes.fromhex(earlier.manifest["digest"]), *self.digests],
            tables=[*(table for _, table in read_tables(earlier.splits, COUNTED)), *self.tables],
            lines=counts["lines"] + self.lines,
            blank_lines=counts["blank_lines"] + self.blank_lines,
            seal=extend_seal(earlier.manifest["seal"], self.seal),
            formats={**earlier.manifest["formats"], **self.formats},
        )


def _map_lines(
    config: PrepareConfig, target: Target, lines: datasets.Dataset, mapper: RowMapper, key: str
) -> datasets.Dataset:
    """Return one entry per line, in order: the one pass over the data."""
    size = lines.data.nbytes
    workers = min(config.num_proc, max(1, size // _BYTES_PER_WORKER), max(1, len(lines)))
    return lines.with_format("arrow").map(
        mapper,
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


def _read_rejects(entries: datasets.Dataset, known: Collection[str]) -> list[Reject]:
    """Return the rejects among the entries; the earlier set has those of ``known`` lines already."""
    texts = entries.data.column(REJECT).to_pylist()
    rejects = (Reject(**json.loads(text)) for text in texts if text is not None)
    return [reject for reject in rejects if f"{reject.file}:{reject.line}" not in known]


def _rows_in(entries: datasets.Dataset) -> Iterator[tuple[int, Entry]]:
    """Yield the place and identity of each entry that is a row."""
    names = ("id", "source", LINE_DIGEST, REJECT)
    start = 0
    for batch in entries.data.select(names).to_batches():
        columns = [batch.column(name).to_pylist() for name in names]
        for place, (id_, source, digest, reject) in enumerate(zip(*columns, strict=True), start):
            if reject is None:
                yield place, Entry(id_, source, digest)
        start += batch.num_rows


def _sources_at(entries: datasets.Dataset, places: Iterable[int]) -> set[str]:
    """Return the ``file:line`` of the lines that the entries at ``places`` come from."""
    sources = entries.data.column("source")
    return {sources[place].as_py() for place in places}


def _judge(
    config: PrepareConfig,
    target: Target,
    rejects: Sequence[Reject],
    faults: int,
    lines: int,
    points: int,
) -> None:
    """Refuse the data where more was rejected than the settings allow.

    ``faults`` are the rejects without the repeats and the duplicates that the settings allow. Like
    them, ``points`` counts each decision point of a line, so that a share is one of its own kind.
    """
    if faults <= config.max_reject_rate * points:
        return
    write_rejects(target.rejects, rejects)
    first = rejects[0]
    codes = ", ".join(f"{code} {n}" for code, n in Counter(r.code for r in rejects).most_common())
    found = f"{lines} lines" if points == lines else f"{points} decision points in {lines} lines"
    raise DataRefused(
        f"{len(rejects)} of {found} were rejected ({codes}); nothing was published. "
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


def _write(config: PrepareConfig, target: Target, made: _Made) -> dict[str, Any]:
    """Write the splits and what stands beside them into the staging folder, the manifest last."""
    _save(target, made.splits)
    rows_by_split = {str(name): len(rows) for name, rows in made.splits.items()}
    counts = count_rows(made.lines, rows_by_split, made.rejects, made.tables)
    manifest: dict[str, Any] = {
        "digest": sum_digests(made.digests),
        "seal": made.seal,
        "counts": {**counts, "faults": made.faults, "blank_lines": made.blank_lines},
        "config": config.to_dict(),
        "formats": made.formats,
    }
    write_rejects(target.staging / "rejects.jsonl", made.rejects)
    write_examples(target.staging, made.examples.items())
    write_card(target.staging, manifest)
    manifest["files"] = {
        path.relative_to(target.staging).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hash_file_bytes(path),
        }
        for path in sorted(target.staging.rglob("*"))
        if path.is_file()
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (target.staging / MANIFEST).write_text(text, encoding="utf-8")
    return manifest
