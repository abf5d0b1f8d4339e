"""Plan, encode, merge, seal: the set of a job, written beside its target and put in its place at the end.

The input is cut into shards, each becomes files of its own (`pipeline.job.shard`), and the set is
made of these files as they are: a row is written once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

from pipeline.config import PrepareConfig
from pipeline.errors import DataRefused, StoreFailed, UsageError
from pipeline.examples.shapes import check_format
from pipeline.job.append import open_earlier_set
from pipeline.job.engines.executors import plan_tasks, run_tasks
from pipeline.job.merge import judge_rejects, merge_shards, write_set
from pipeline.job.progress import ProgressReport
from pipeline.job.shard import Progress, encode_shard, read_lines_of
from pipeline.job.shard_record import ShardRecord, read_finished
from pipeline.job.workers import OnProgress, run_shards
from pipeline.lines.files import SourceFile
from pipeline.lines.plan import SourcePlan, SourceShard
from pipeline.lines.text import WATCHED_READS, SourceLine
from pipeline.prompt.bounded import BOUNDED_RUNS
from pipeline.rows.builder import RowBuilder
from pipeline.rows.line_mapper import RowMapper
from pipeline.sets.place import Target, sync_file
from pipeline.sets.seal import complete_seal, hash_seal

logger = logging.getLogger(__name__)

# Below this many bytes of input a second process costs more than it saves.
_BYTES_PER_WORKER: Final = 2 << 20
# Below this many, `tokenizers` is done before fastokens is built (a second for 150,000 tokens).
_BYTES_FOR_FASTOKENS: Final = 1 << 20
# Settings that are sealed, and change no shard.
_AFTER_SHARDS: Final = frozenset({"on_duplicate"})
# What is read before the work begins, so that workers begin with what it shows.
_HEAD_LINES: Final = 200
_HEAD_CHARACTERS: Final = 2**20
# Each takes ten seconds.
MOST_OVER: Final = 100


def load_builder(config: PrepareConfig, files: Sequence[SourceFile]) -> RowBuilder:
    """Return the builder of the rows of ``files``, its encoder chosen by their size too.

    Raises `UsageError` for a tokenizer, a template or a server that cannot be had.
    """
    skips_fastokens = config.encoder == "auto" and _is_small(files)
    return RowBuilder(replace(config, encoder="tokenizers") if skips_fastokens else config)


def build_set(
    config: PrepareConfig,
    target: Target,
    files: Sequence[SourceFile],
    plan: SourcePlan,
    seal: dict[str, Any],
    builder: RowBuilder,
) -> tuple[dict[str, Any], int]:
    """Build and publish the set of ``files`` at ``target``; return its manifest, and how many rows
    are new in it. Where nothing is to be appended nothing is written.

    Raises what `pipeline.job.prepare.prepare` raises; ``target`` is then as it was.
    """
    seal = complete_seal(seal, builder.encoder, builder.templates)
    earlier = open_earlier_set(target.path, seal) if config.append else None
    if earlier:
        target.check_origin(earlier.manifest["seal"])
    check_format(config.format)
    mapper = RowMapper(config, builder)
    folder = target.open_work(f"{_hash_shard_seal(seal)[:16]}-{plan.key[:8]}")
    try:
        records, reused = _make_shards(config, plan, mapper, folder, seal)
        if not sum(record.lines for record in records):
            raise UsageError(
                f"input: {', '.join(config.input)}: no line to read; expected JSONL examples"
            )
        merged = merge_shards(config, folder, records, earlier)
        judge_rejects(config, merged, target.rejects_file)
        if earlier and merged.is_empty:
            return earlier.manifest, 0
        facts = {"shards": {"made": len(records), "reused": reused}}
        # No part of the key: the ids do not depend on which library encoded.
        seal = {**seal, "encoder": builder.encoder.encoder_checks}
        if config.encoder == "auto" and _is_small(files):
            seal["encoder"]["reason"] = "the input is small: building fastokens would take longer"
        manifest = write_set(config, target.staging, merged, seal, facts, builder)
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
    return manifest, sum(record.counts.rows for record in merged.records)


def _hash_shard_seal(seal: Mapping[str, Any]) -> str:
    """Return what the shards of a job are known by: its seal without what is decided after them."""
    settings = {
        name: value for name, value in seal["settings"].items() if name not in _AFTER_SHARDS
    }
    return hash_seal({**seal, "settings": settings})


def _is_small(files: Sequence[SourceFile]) -> bool:
    try:
        return sum(file.path.stat().st_size for file in files) < _BYTES_FOR_FASTOKENS
    except OSError:
        # Gone: who reads the file says so.
        return False


def _make_shards(
    config: PrepareConfig,
    plan: SourcePlan,
    mapper: RowMapper,
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
    settle_mapper(mapper, plan.shards[0])
    synced: list[Future[None]] = []
    with (
        ProgressReport(plan, done.values(), publishes=config.max_reject_rate > 0) as report,
        ThreadPoolExecutor(1) as disk,
    ):
        if config.executor == "none":
            made = encode_shards(config, missing, mapper, folder, report.add_batch)
        else:
            made = run_tasks(plan_tasks(config, plan, seal), folder, missing)
        for record in made:
            done[record.index] = record
            report.end_shard(record)
            # The disk writes while the next shards are computed.
            synced += [disk.submit(partial(sync_file, folder / each.name)) for each in record.files]
    for future in synced:
        future.result()
    return [done[shard.index] for shard in plan.shards], reused


def settle_mapper(mapper: RowMapper, shard: SourceShard) -> None:
    """Let the mapper learn from the first lines of a shard what holds for all of the job."""
    mapper.builder.settle(mapper.find_points(_read_head(shard)))


def encode_shards(
    config: PrepareConfig,
    shards: Sequence[SourceShard],
    mapper: RowMapper,
    folder: Path,
    on_batch: OnProgress = lambda progress: None,
) -> Iterator[ShardRecord]:
    """Make shards on ``num_proc`` cores of this machine; yield the record of each as it is done.

    Raises what `pipeline.job.workers.run_shards` raises.
    """

    def start_worker(is_careful: bool) -> None:
        mapper.builder.encoder.use_one_thread()
        if not is_careful:
            BOUNDED_RUNS.use_this_process()

    def encode(shard: SourceShard, on_batch: OnProgress) -> ShardRecord:
        WATCHED_READS.on_read = partial(on_batch, Progress(shard.index, "", 0, 0, 0, 0))
        BOUNDED_RUNS.on_over = partial(_count_over, shard, on_batch, count())
        return encode_shard(shard, mapper, config, folder, on_batch)

    size = sum(shard.bytes for shard in shards)
    workers = min(config.num_proc, max(1, size // _BYTES_PER_WORKER))
    # Not kept beside the workers, who would each have its pipe.
    BOUNDED_RUNS.end()
    yield from run_shards(shards, encode, workers, on_batch, start_worker)


def _count_over(shard: SourceShard, on_batch: OnProgress, number: Iterator[int]) -> None:
    """Show that a worker lives, whose template breaks the limits; stop where it only does that."""
    if next(number) == MOST_OVER:
        raise DataRefused(
            f"chat template: over {MOST_OVER} conversations of {shard.describe()} take more than a "
            "render may; the job was stopped, mend the template"
        )
    on_batch(Progress(shard.index, "", 0, 0, 0, 0))


def _read_head(shard: SourceShard) -> list[tuple[str, SourceLine]]:
    """Return the first lines of a shard."""
    head: list[tuple[str, SourceLine]] = []
    characters = 0
    for file, line in read_lines_of(shard, []):
        head.append((file, line))
        characters += len(line.text or "")
        if len(head) == _HEAD_LINES or characters > _HEAD_CHARACTERS:
            break
    return head


def _estimate_bytes(folder: Path, plan: SourcePlan) -> int:
    """Return about how many bytes the set takes: by the finished shards, else twice its input."""
    finished = [
        (shard, record)
        for shard in plan.shards
        if (record := read_finished(folder, shard.index)) is not None
    ]
    read = sum(shard.bytes for shard, _ in finished)
    written = sum(file.bytes for _, record in finished for file in record.files)
    return plan.bytes * written // read if read else 2 * plan.bytes
