"""One task of a job: makes the shards that the plan deals out to it, wherever it runs.

    python -m pipeline.job.engines.task PLAN K

A task may be run again, and twice at once: a shard that is whole is left as it is, and two makers
of one shard write files of their own and give them the same bytes under the same name.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.errors import (
    MOST_WORDS,
    ContextFrozenError,
    SealMismatch,
    UsageError,
    escape_controls,
    excerpt_of,
    shorten_middle,
)
from pipeline.job.engines.plan_file import Failure, JobPlan, failure_path
from pipeline.job.shard_record import ShardRecord, read_finished, rows_path
from pipeline.lines.plan import SourceShard
from pipeline.sets.disk import sync_file
from pipeline.sets.marks import marked_as_running
from pipeline.sets.seal import check_tokenizer, find_differences, hash_seal, make_seal
from pipeline.tokens import without_torch


def run_task(plan_path: Path, task: int) -> int:
    """Make the shards of a task that are not whole yet; return how many were made.

    Raises `UsageError` where this machine would make other rows than the one that planned (the key
    of the seal that differs is named), and for input that is not what was planned; else what
    `pipeline.job.shard.map_shard` raises. Why it failed is left beside the plan too.
    """
    folder = plan_path.parent
    failure_path(folder, task).unlink(missing_ok=True)
    try:
        plan = JobPlan.read(plan_path)
        with marked_as_running(folder, plan_path):
            return _make_shards(plan, folder, task)
    except ContextFrozenError as error:
        Failure.of(error).write(folder, task)
        raise


def check_seal(plan: JobPlan) -> None:
    """Refuse to work where this machine has other libraries, files or settings than the plan.

    Raises `UsageError` with the key of the seal that differs.
    """
    found = make_seal(plan.config, plan.source.sha256)
    if hash_seal(found) == hash_seal(plan.seal) == plan.seal["key"]:
        return
    key, planned, here = next(
        find_differences("seal", plan.seal, found), ("seal.key", plan.seal["key"], found["key"])
    )
    raise _other_machine(key, planned, here)


def check_sizes(plan: JobPlan, shards: Sequence[SourceShard]) -> None:
    """Refuse files of ``shards`` of other sizes than were planned. Raises `UsageError`.

    A change that keeps the size is seen while the file is read, by the checksums of its pieces.
    """
    sizes = plan.source.sizes
    for file in dict.fromkeys(piece.file for shard in shards for piece in shard.pieces):
        try:
            found = file.path.stat().st_size
        except OSError as error:
            raise UsageError(
                f"input: {file.path}: {error.strerror} on {platform.node()}; expected the files of "
                "the plan on every machine, in a folder that all share"
            ) from error
        if found != sizes[file]:
            raise UsageError(
                f"input: {file.name} has {found} bytes, the plan says {sizes[file]}; "
                "expected files that stand still, run prepare again"
            )


def _make_shards(plan: JobPlan, folder: Path, task: int) -> int:
    own = plan.shards_of(task)
    missing = [shard for shard in own if read_finished(folder, shard.index) is None]
    if not missing:
        return 0
    check_seal(plan)
    check_sizes(plan, missing)
    for record in _map(plan, missing, folder):
        sync_file(rows_path(folder, record.index))
    return len(missing)


def _map(plan: JobPlan, missing: Sequence[SourceShard], folder: Path) -> Iterator[ShardRecord]:
    # Takes transformers, which a task that has nothing to do, or must not, is spared.
    from pipeline.job.shards import load_row_map, map_shards, settle

    config = replace(plan.config, num_proc=plan.config.cpus_per_task)
    row_map = load_row_map(config, list(plan.source.sizes))
    builder = row_map.mapper.builder
    try:
        check_tokenizer(plan.seal, builder.encoder, builder.templates)
    except SealMismatch as error:
        raise _other_machine(error.key, error.expected, error.found) from error
    settle(row_map, missing[0])
    # Whoever waits for a task hears nothing of its batches: its workers are watched here.
    yield from map_shards(config, missing, row_map, folder)


def _other_machine(key: str, planned: object, here: object) -> UsageError:
    return UsageError(
        f"{key} differs on {platform.node()}: the job was planned with {excerpt_of(planned)}, found "
        f"{excerpt_of(here)}; expected the same libraries and files on every machine"
    )


def main(args: Sequence[str]) -> int:
    """Run a task and return its exit code: 0 done, 1 data refused, 2 wrong machine, plan or usage."""
    if len(args) != 2 or not args[1].isdecimal():
        print("usage: python -m pipeline.job.engines.task PLAN K", file=sys.stderr)
        return 2
    # No task computes with torch, which transformers would import for a second and 190 MB.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    without_torch.leave_out()
    path, task = Path(args[0]), int(args[1])
    try:
        made = run_task(path, task)
    except ContextFrozenError as error:
        words = shorten_middle(escape_controls(str(error), keep="\n"), MOST_WORDS)
        print(f"task {task}: {words}", file=sys.stderr)
        return error.exit_code
    print(f"task {task} on {platform.node()}: {made} shards made", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
