"""The shards of a job taken together: duplicates left out, the verdict, the files of the set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import PrepareConfig
from pipeline.errors import DataRefused, excerpt_of
from pipeline.job.append import EarlierSet, drop_replaced, extend_seal
from pipeline.job.duplicates import find_contenders, find_duplicates
from pipeline.job.heap import give_back_free_memory
from pipeline.job.omit import omit_duplicates
from pipeline.job.shard import format_example, format_rejects, split_names
from pipeline.job.shard_record import ShardRecord
from pipeline.rows.builder import RowBuilder
from pipeline.rows.shape_counts import ShapeCounts
from pipeline.rows.table import sum_digests
from pipeline.sets.card import write_card
from pipeline.sets.counts import describe_counts
from pipeline.sets.figures import SetFigures
from pipeline.sets.folder import PlacedFile, join_files, keep_filled, seal_folder, write_splits
from pipeline.sets.manifest import EXAMPLES, REJECTS
from pipeline.sets.rejects_file import RejectsFile


@dataclass(frozen=True, slots=True)
class MergedShards:
    """Shards whose files lie in ``folder``, with the set that they are appended to, if any.

    ``points`` are the decision points that were read, ``faults`` the rejects that count against
    ``max_reject_rate``, ``lines`` the lines that the earlier set has not already.
    """

    folder: Path
    records: Sequence[ShardRecord]
    points: int
    faults: int
    lines: int
    earlier: EarlierSet | None

    @property
    def is_empty(self) -> bool:
        """True where no row and no reject is new."""
        return not any(record.counts.rows or record.codes for record in self.records)

    @property
    def codes(self) -> Counter[str]:
        """Number of new rejects by code."""
        codes: Counter[str] = Counter()
        for record in self.records:
            codes.update(record.codes)
        return codes

    @property
    def reject_files(self) -> list[Path]:
        """The files of new rejects, in the order of the input."""
        return [self.folder / record.rejects.name for record in self.records]


def merge_shards(
    config: PrepareConfig,
    folder: Path,
    records: Sequence[ShardRecord],
    earlier: EarlierSet | None,
) -> MergedShards:
    """Return the shards without duplicates; ``records`` are in order, their files in ``folder``."""
    known_examples = earlier.examples if earlier else {}
    contenders = dict(
        find_contenders([folder / record.entries.name for record in records], known_examples)
    )
    duplicates = find_duplicates(contenders.items(), config.on_duplicate, known_examples)
    known = {contenders[place].source for place in duplicates.already_there}
    kept = omit_duplicates(folder, records, duplicates, known)
    rejects = sum(sum(record.codes.values()) for record in kept)
    return MergedShards(
        folder=folder,
        records=kept,
        points=sum(record.counts.rows + sum(record.codes.values()) for record in records),
        faults=rejects - len(duplicates.rejects) + len(duplicates.faults),
        lines=sum(record.lines for record in records) - len(known),
        earlier=drop_replaced(earlier, duplicates.replaced, folder) if earlier else None,
    )


def judge_rejects(config: PrepareConfig, merged: MergedShards, rejects: RejectsFile) -> None:
    """Refuse the data where more was rejected than the settings allow.

    ``faults`` are the rejects without the repeats and the duplicates that the settings allow. Like
    them, ``points`` counts each decision point of a line, so that a share is one of its own kind.
    Raises `DataRefused`; the rejects are then in the file that the message names.
    """
    if merged.faults <= config.max_reject_rate * merged.points:
        return
    written = rejects.write(merged.reject_files)
    with written.open(encoding="utf-8", newline="\n") as lines:
        first: dict[str, Any] = json.loads(next(lines))
    found = ", ".join(f"{code} {number}" for code, number in merged.codes.most_common())
    lines_read = sum(record.lines for record in merged.records)
    of = (
        f"{lines_read} lines"
        if merged.points == lines_read
        else f"{merged.points} decision points in {lines_read} lines"
    )
    raise DataRefused(
        f"{merged.codes.total()} of {of} were rejected ({found}); nothing was published. "
        f"First: {first['file']}:{first['line']} (id {excerpt_of(first['id'])!r}): {first['code']}: "
        f"{first['reason']}. All are in {written}; mend them, or allow a share with max_reject_rate"
    )


def write_set(
    config: PrepareConfig,
    staging: Path,
    merged: MergedShards,
    seal: Mapping[str, Any],
    facts: Mapping[str, Any],
    builder: RowBuilder,
) -> dict[str, Any]:
    """Write the splits and what stands beside them into ``staging``, the manifest last; return it.

    ``facts`` are further keys of the manifest, ``builder`` made the rows.
    """
    earlier = merged.earlier
    splits = keep_filled(
        {
            name: [*(earlier.rows.get(name, ()) if earlier else ()), *_place_rows(merged, name)]
            for name in split_names(config)
        }
    )
    placed = write_splits(staging, splits, config.columns)
    manifest: dict[str, Any] = {
        "digest": sum_digests(map(bytes.fromhex, _digests_of(merged))),
        "seal": extend_seal(earlier.manifest["seal"], seal) if earlier else dict(seal),
        "counts": _count_set(merged, splits),
        "config": config.to_dict(),
        **facts,
    }
    _write_rejects(staging / REJECTS, merged)
    _write_examples(staging / EXAMPLES, merged)
    give_back_free_memory()
    figures = SetFigures(staging)
    write_card(figures, manifest, builder)
    if config.report:
        # Draws pictures, which takes a library that nothing else here needs.
        from pipeline.view.report import make_report

        page = make_report(figures, manifest, builder)
        (staging / "report.html").write_text(page, encoding="utf-8")
    return seal_folder(staging, manifest, placed)


def _place_rows(merged: MergedShards, split: str) -> Iterator[PlacedFile]:
    for record in merged.records:
        file = record.rows[split]
        yield PlacedFile(merged.folder / file.name, file)


def _digests_of(merged: MergedShards) -> Iterator[str]:
    if merged.earlier:
        yield merged.earlier.manifest["digest"]
    for record in merged.records:
        yield record.digest


def _count_set(merged: MergedShards, splits: Mapping[str, Sequence[PlacedFile]]) -> dict[str, Any]:
    codes, counts = merged.codes, [record.counts for record in merged.records]
    shapes = [record.shapes for record in merged.records]
    lines, faults = merged.lines, merged.faults
    blank_lines = sum(piece.blank_lines for record in merged.records for piece in record.pieces)
    if earlier := merged.earlier:
        described = earlier.manifest["counts"]
        codes.update(described["by_code"])
        codes.update(reject.code for reject in earlier.replaced)
        counts = [earlier.counts, *counts]
        shapes = [ShapeCounts.from_described(described), *shapes]
        lines += described["lines"]
        faults += described["faults"]
        blank_lines += described["blank_lines"]
    rows_by_split = {
        name: sum(placed.file.rows for placed in files) for name, files in splits.items()
    }
    described = describe_counts(lines, rows_by_split, codes, counts, shapes)
    return {**described, "faults": faults, "blank_lines": blank_lines}


def _write_rejects(path: Path, merged: MergedShards) -> None:
    parts = merged.reject_files
    if earlier := merged.earlier:
        gained = merged.folder / "replaced.jsonl"
        gained.write_text("".join(format_rejects(earlier.replaced)), encoding="utf-8")
        parts = [earlier.folder / REJECTS, gained, *parts]
    join_files(parts, path)


def _write_examples(path: Path, merged: MergedShards) -> None:
    parts = [merged.folder / record.examples.name for record in merged.records]
    if earlier := merged.earlier:
        kept = merged.folder / "earlier.sha256"
        lines = [format_example(id_, line) for id_, line in earlier.examples.items()]
        kept.write_text("".join(lines), encoding="utf-8")
        parts = [kept, *parts]
    join_files(parts, path)
