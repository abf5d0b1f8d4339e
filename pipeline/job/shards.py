"""The shards of a job mapped on the cores of this machine: what one process and one task have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import datasets

from pipeline.config import PrepareConfig
from pipeline.errors import DataRefused
from pipeline.job.heap import give_back_free_memory
from pipeline.job.shard import Progress, map_shard, read_lines_of
from pipeline.job.shard_record import ShardRecord
from pipeline.job.workers import OnProgress, run_shards
from pipeline.lines.files import SourceFile
from pipeline.lines.plan import SourceShard
from pipeline.lines.text import WATCHED_READS, SourceLine
from pipeline.prompt.bounded import BOUNDED_RUNS
from pipeline.rows.row_map import RowMap
from pipeline.tokens.without_torch import give_back

# Below this many bytes of input a second process costs more than it saves.
BYTES_PER_WORKER: Final = 2 << 20
# Below this many, `tokenizers` is done before fastokens is built (a second for 150,000 tokens).
_BYTES_FOR_FASTOKENS: Final = 1 << 20
# What is read before the work begins, so that workers begin with what it shows.
_HEAD_LINES: Final = 200
_HEAD_CHARACTERS: Final = 2**20
# Each takes ten seconds.
MOST_OVER: Final = 100


def load_row_map(config: PrepareConfig, files: Sequence[SourceFile]) -> RowMap:
    """Return the map of the rows of ``files``, its tokenizer loaded, its encoder chosen by their size too.

    Raises `UsageError` for a tokenizer, a template or a server that cannot be had.
    """
    settings = config.row_settings()
    if config.encoder == "auto" and is_small(files):
        settings = replace(settings, encoder="tokenizers")
    row_map = RowMap(settings=settings, on_reject="keep")
    row_map.load()
    give_back()
    # What was read to build the tokenizer is freed by now, and would stay with this process.
    give_back_free_memory()
    return row_map


def is_small(files: Sequence[SourceFile]) -> bool:
    try:
        return sum(file.path.stat().st_size for file in files) < _BYTES_FOR_FASTOKENS
    except OSError:
        # Gone: who reads the file says so.
        return False


def settle(row_map: RowMap, shard: SourceShard) -> None:
    """Let the map learn from the first lines of a shard what holds for all of the job."""
    mapper = row_map.mapper
    mapper.builder.settle(mapper.find_points(_read_head(shard)))


def map_shards(
    config: PrepareConfig,
    shards: Sequence[SourceShard],
    row_map: RowMap,
    folder: Path,
    on_batch: OnProgress = lambda progress: None,
) -> Iterator[ShardRecord]:
    """Make shards on ``num_proc`` cores of this machine; yield the record of each as it is done.

    Raises what `pipeline.job.workers.run_shards` raises.
    """

    def start_worker(is_careful: bool) -> None:
        row_map.mapper.builder.encoder.use_one_thread()
        datasets.disable_progress_bars()
        if not is_careful:
            BOUNDED_RUNS.use_this_process()

    def map_one(shard: SourceShard, on_batch: OnProgress) -> ShardRecord:
        # While little comes of what is read, a reading counts as a sign of life.
        WATCHED_READS.on_read = partial(on_batch, Progress(shard.index, "", 0, 0, 0, 0))
        BOUNDED_RUNS.on_over = partial(_count_over, shard, on_batch, count())
        return map_shard(shard, row_map, folder, config.batch_size, on_batch)

    size = sum(shard.bytes for shard in shards)
    workers = min(config.num_proc, max(1, size // BYTES_PER_WORKER))
    # Not kept beside the workers, who would each have its pipe.
    BOUNDED_RUNS.end()
    yield from run_shards(shards, map_one, workers, on_batch, start_worker)


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
