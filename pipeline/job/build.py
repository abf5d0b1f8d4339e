"""A map per shard, an assembly, a publication: the set of a job.

Each shard of the input is mapped to a file of rows (`pipeline.job.shard`), which is how a job resumes;
the shards are taken together (`pipeline.job.assemble`), saved beside the target (`pipeline.job.save`)
and put in its place.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

from pipeline.config import PrepareConfig
from pipeline.errors import DataRefused, StoreFailed, UsageError
from pipeline.job.append import open_earlier_set
from pipeline.job.assemble import Assembly, assemble, open_shards, spell_rejects
from pipeline.job.engines.executors import plan_tasks, run_tasks
from pipeline.job.progress import ProgressReport
from pipeline.job.save import write_set
from pipeline.job.shard_record import ShardRecord, read_finished, rows_path
from pipeline.job.shards import is_small, map_shards, settle
from pipeline.lines.files import SourceFile
from pipeline.lines.plan import SourcePlan
from pipeline.rows.row_map import RowMap
from pipeline.sets.disk import sync_file
from pipeline.sets.place import Target
from pipeline.sets.rejects_file import RejectsFile
from pipeline.sets.seal import complete_seal, hash_seal
from pipeline.view.stages import show_stage

logger = logging.getLogger(__name__)

# Settings that are sealed, and change no shard.
_AFTER_SHARDS: Final = frozenset({"on_duplicate"})


def build_set(
    config: PrepareConfig,
    target: Target,
    files: Sequence[SourceFile],
    plan: SourcePlan,
    seal: dict[str, Any],
    row_map: RowMap,
) -> tuple[dict[str, Any], int]:
    """Build and publish the set of ``files`` at ``target``; return its manifest, and how many rows
    are new in it. Where nothing is to be appended nothing is written.

    Raises what `pipeline.job.prepare.prepare` raises; ``target`` is then as it was.
    """
    builder = row_map.mapper.builder
    seal = complete_seal(seal, builder.encoder, builder.templates)
    earlier = open_earlier_set(target.path, seal) if config.append else None
    if earlier:
        target.check_origin(earlier.manifest["seal"])
    folder = target.open_work(f"{_hash_shard_seal(seal)[:16]}-{plan.key[:8]}")
    try:
        records, reused = _make_shards(config, plan, row_map, folder, seal)
        lines = sum(record.lines for record in records)
        if not lines:
            raise UsageError(
                f"input: {', '.join(config.input)}: no line to read; expected JSONL examples"
            )
        show_stage(f"writing {target.location}")
        mapped = open_shards([rows_path(folder, record.index) for record in records])
        assembly = assemble(mapped, config, earlier)
        judge_rejects(assembly, config.max_reject_rate, lines, target.rejects_file)
        if earlier and assembly.is_empty:
            return earlier.manifest, 0
        # No part of the key: the ids do not depend on which library encoded.
        seal = {**seal, "encoder": builder.encoder.encoder_checks}
        if config.encoder == "auto" and is_small(files):
            seal["encoder"]["reason"] = "the input is small: building fastokens would take longer"
        manifest = write_set(
            target.staging,
            assembly,
            seal,
            builder,
            config.to_dict(),
            lines=lines,
            blank_lines=sum(piece.blank_lines for each in records for piece in each.pieces),
            shapes=[record.shapes for record in records],
            facts={"shards": {"made": len(records), "reused": reused}},
        )
        target.publish()
    except StoreFailed:
        raise
    except OSError as error:
        raise UsageError(
            f"output: {target.path}: {error.strerror or error}; about "
            f"{_estimate_bytes(folder, plan)} bytes are needed in {target.path.parent}; "
            "nothing was changed there"
        ) from error
    target.rejects_file.remove()
    logger.info("published %s: %s rows", target.path, manifest["counts"]["rows"])
    return manifest, assembly.new


def judge_rejects(
    assembly: Assembly, max_reject_rate: float, lines: int, rejects: RejectsFile
) -> None:
    """Refuse the data where more was rejected than ``max_reject_rate`` allows.

    Faults are the rejects without the repeats and the duplicates that the settings allow. Like them,
    points count each decision point of a line, so that a share is one of its own kind. Raises
    `DataRefused`; the rejects are then in the file that the message names.
    """
    if assembly.faults <= max_reject_rate * assembly.points:
        return
    written = rejects.write(spell_rejects(assembly.rejects))
    first = assembly.rejects[0]
    found = ", ".join(f"{code} {number}" for code, number in assembly.codes.most_common())
    of = f"{lines} lines"
    if assembly.points != lines:
        of = f"{assembly.points} decision points in {lines} lines"
    raise DataRefused(
        f"{len(assembly.rejects)} of {of} were rejected ({found}); nothing was published. "
        f"First: {first.file}:{first.line} (id {first.id[:80]!r}): {first.code}: "
        f"{first.reason}. All are in {written}; mend them, or allow a share with max_reject_rate"
    )


def _hash_shard_seal(seal: Mapping[str, Any]) -> str:
    """Return what the shards of a job are known by: its seal without what is decided after them."""
    settings = {
        name: value for name, value in seal["settings"].items() if name not in _AFTER_SHARDS
    }
    return hash_seal({**seal, "settings": settings})


def _make_shards(
    config: PrepareConfig,
    plan: SourcePlan,
    row_map: RowMap,
    folder: Path,
    seal: Mapping[str, Any],
) -> tuple[list[ShardRecord], int]:
    """Return the record of every shard, in order, and how many an earlier run had finished."""
    done = {
        shard.index: record
        for shard in plan.shards
        if (record := read_finished(folder, shard.index)) is not None
    }
    reused = len(done)
    missing = [shard for shard in plan.shards if shard.index not in done]
    show_stage(f"making rows of {plan.bytes:,} bytes in {len(missing)} shards")
    settle(row_map, plan.shards[0])
    synced: list[Future[None]] = []
    with (
        ProgressReport(plan, done.values(), publishes=config.max_reject_rate > 0) as report,
        ThreadPoolExecutor(1) as disk,
    ):
        if config.executor == "none":
            made = map_shards(config, missing, row_map, folder, report.add_batch)
        else:
            made = run_tasks(plan_tasks(config, plan, seal), folder, missing)
        for record in made:
            done[record.index] = record
            report.end_shard(record)
            # The disk writes while the next shards are computed.
            synced.append(disk.submit(partial(sync_file, rows_path(folder, record.index))))
    for future in synced:
        future.result()
    return [done[shard.index] for shard in plan.shards], reused


def _estimate_bytes(folder: Path, plan: SourcePlan) -> int:
    """Return about how many bytes a job takes: by its finished shards, else four times its input."""
    finished = [
        (shard, record)
        for shard in plan.shards
        if (record := read_finished(folder, shard.index)) is not None
    ]
    read = sum(shard.bytes for shard, _ in finished)
    written = sum(record.bytes for _, record in finished)
    # Its shards, and the set that is made of them.
    return 2 * plan.bytes * written // read if read else 4 * plan.bytes
