"""Measure what many machines cost: rows a second by tasks, a shard's overhead, the merge of many shards.

    python scripts/bench_scale.py tasks --rows 4000           # 1, 2, 4, 8 tasks, constant work per task
    python scripts/bench_scale.py merge --shards 10 1000 10000
    python scripts/bench_scale.py plan --megabytes 1000       # reading, hashing and cutting the input

``tasks`` runs whole jobs with an executor, the input growing with the tasks; ``merge`` makes
tiny shards with `map_shard`, then times every step after the last marker, and opens the set.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.config import PrepareConfig, usable_cores
from pipeline.job.assemble import assemble, open_shards
from pipeline.job.build import judge_rejects
from pipeline.job.engines.executors import plan_tasks
from pipeline.job.engines.plan_file import JobPlan
from pipeline.job.prepare import prepare
from pipeline.job.save import write_set
from pipeline.job.shard_record import ShardRecord, read_finished, read_made, rows_path
from pipeline.job.shards import load_row_map, map_shards, settle
from pipeline.lines import plan as planning
from pipeline.lines.files import SourceFile
from pipeline.sets.disk import sync_tree
from pipeline.sets.place import Target
from pipeline.sets.seal import complete_seal, make_seal

ROOT = Path(__file__).resolve().parents[1]
SENTENCE = "The quick brown fox jumps over the lazy dog, and then it does so again. "


def write_talks(path: Path, number: int, turns: int = 6) -> Path:
    """Write conversations of about 200 tokens a turn, no two alike."""
    with path.open("w", encoding="utf-8") as file:
        for at in range(number):
            messages = [
                {"role": role, "content": f"{at} {turn} {SENTENCE * 8}"}
                for turn in range(turns)
                for role in ("user", "assistant")
            ]
            file.write(json.dumps({"id": f"talk-{at}", "messages": messages}) + "\n")
    return path


def make_config(input: Path, output: Path, **settings: Any) -> PrepareConfig:
    """Return the config of a measured job: the bundled tokenizer, no report."""
    values: dict[str, Any] = {
        "tokenizer": str(ROOT / "configs" / "tokenizer"),
        "num_proc": 1,
        "report": False,
        **settings,
    }
    return PrepareConfig(input=(str(input),), output=str(output), **values)


def measure_tasks(folder: Path, rows: int, numbers: list[int], executor: str) -> Table:
    """Return rows a second of whole jobs of 1, 2, ... tasks; the input has ``rows`` for each task."""
    table = Table("tasks", "rows", "MB", "seconds", "rows/s", title=f"executor {executor}")
    for tasks in numbers:
        path = write_talks(folder / f"{tasks}.jsonl", rows * tasks)
        config = make_config(path, folder / f"set-{tasks}", executor=executor, tasks=tasks)
        begun = time.perf_counter()
        made = prepare(config, quiet=True)
        seconds = time.perf_counter() - begun
        size = path.stat().st_size / 1e6
        count = made.counts["rows"]
        table.add_row(
            str(tasks), str(count), f"{size:.0f}", f"{seconds:.1f}", f"{count / seconds:.0f}"
        )
        path.unlink()
    return table


class Steps:
    """Seconds by name of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count the seconds of the block under ``name``."""
        begun = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begun


def measure_merge(folder: Path, number: int, *, report: bool) -> Steps:
    """Return the seconds of every step of a job of ``number`` tiny shards."""
    steps = Steps()
    path = write_talks(folder / f"{number}.jsonl", number + 2, turns=1)
    config = make_config(path, folder / f"set-{number}", report=report, executor="ray", tasks=8)
    planning.LEAST_SHARD_BYTES = planning.MOST_SHARD_BYTES = 1
    files = [SourceFile(path, path.name)]
    target = Target(config.output)
    with steps.timed("plan the input"):
        source = planning.plan_shards(files)
    row_map = load_row_map(config, files)
    builder = row_map.mapper.builder
    seal = complete_seal(make_seal(config, source.sha256), builder.encoder, builder.templates)
    work = target.open_work("bench")
    with steps.timed("write plan.json"):
        plan_path = plan_tasks(config, source, seal).write(work)
    with steps.timed("read plan.json"):
        JobPlan.read(plan_path)
    settle(row_map, source.shards[0])
    with steps.timed("make the shards"):
        for _ in map_shards(config, source.shards, row_map, work):
            pass
    with steps.timed("flush the shards (each task its own)"):
        sync_tree(work)
    with steps.timed("read the markers, sizes"):
        records = [read_made(work, shard.index) for shard in source.shards]
    with steps.timed("read the markers, hashes (resuming)"):
        found = [read_finished(work, shard.index) for shard in source.shards]
    assert found == records
    whole: list[ShardRecord] = [record for record in records if record is not None]
    lines = sum(record.lines for record in whole)
    with steps.timed("assemble: concatenate, find duplicates, select"):
        mapped = open_shards([rows_path(work, record.index) for record in whole])
        assembly = assemble(mapped, config)
    judge_rejects(assembly, config.max_reject_rate, lines, target.rejects_file)
    with steps.timed("write the set" + (", with report" if report else "")):
        write_set(target.staging, assembly, seal, builder, config.to_dict(), lines=lines)
    with steps.timed("flush and publish"):
        target.publish()
    import datasets

    with steps.timed("load_from_disk"):
        train = datasets.load_from_disk(config.output)["train"]
    with steps.timed("read 1,000 rows at random"):
        for at in range(1000):
            _ = train[at * 7919 % len(train)]
    return steps


def show_merge(folder: Path, numbers: list[int], *, report: bool) -> Table:
    """Return the table of `measure_merge` for each number of shards."""
    found = {number: measure_merge(folder, number, report=report).seconds for number in numbers}
    table = Table("seconds for", *(f"{number} shards" for number in numbers))
    for name in found[numbers[0]]:
        table.add_row(name, *(f"{found[number][name]:.2f}" for number in numbers))
    merge = ("read the markers, sizes", "find duplicates", "write the set", "flush and publish")
    merges = [
        sum(each for name, each in found[number].items() if name.startswith(merge))
        for number in numbers
    ]
    table.add_row("merge in all", *(f"{seconds:.2f}" for seconds in merges))
    each = (f"{1000 * found[number]['make the shards'] / number:.1f} ms" for number in numbers)
    table.add_row("one shard of one row", *each)
    return table


def measure_plan(folder: Path, megabytes: int) -> Table:
    """Return how fast an input in eight files is read, hashed and cut."""
    block = write_talks(folder / "block.jsonl", 1000).read_bytes()
    files: list[SourceFile] = []
    for number in range(8):
        path = folder / f"part-{number}.jsonl"
        with path.open("wb") as file:
            for _ in range(max(1, megabytes * 10**6 // 8 // len(block))):
                file.write(block)
        files.append(SourceFile(path, path.name))
    begun = time.perf_counter()
    plan = planning.plan_shards(files)
    seconds = time.perf_counter() - begun
    table = Table("MB", "shards", "seconds", "MB/s")
    size = plan.bytes / 1e6
    table.add_row(f"{size:.0f}", str(len(plan.shards)), f"{seconds:.2f}", f"{size / seconds:.0f}")
    return table


def main() -> None:
    """Run a measurement and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("tasks", "merge", "plan"))
    parser.add_argument("--rows", type=int, default=400, help="rows of each task")
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--executor", default="ray", choices=("ray", "slurm"))
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--report", action="store_true", help="merge: with report.html")
    parser.add_argument("--megabytes", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as temporary:
        folder = Path(temporary)
        if options.what == "tasks":
            table = measure_tasks(folder, options.rows, options.tasks, options.executor)
        elif options.what == "merge":
            table = show_merge(folder, options.shards, report=options.report)
        else:
            table = measure_plan(folder, options.megabytes)
    Console().print(table)
    print(f"{usable_cores()} cores")


if __name__ == "__main__":
    main()
