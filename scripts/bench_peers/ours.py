"""Ours: ``pipeline.prepare`` as a user calls it, server rules on, every column written.

The tokenizer is loaded, and fastokens built, before the clock starts, as every contender's is.
``report.html`` is left out: it takes 0.8 s whatever the size of the set. Everything else counts:
locks, hashes of the input, the encoder's check, probes of the template, seal, card and manifest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.bench_peers.workload import Job, Made

PACKAGE, DISTRIBUTION = "pipeline", "context-frozen"


def load(job: Job) -> Callable[[], Made]:
    """Import what the job imports, and load its tokenizer; return the job."""
    from pipeline.config import PrepareConfig
    from pipeline.job import shards
    from pipeline.job.prepare import prepare
    from pipeline.lines.files import find_files

    config = PrepareConfig(
        input=(job.input,),
        tokenizer=job.tokenizer,
        output=str(Path(job.work) / "out"),
        max_len=job.max_len,
        num_proc=job.num_proc,
        report=False,
        # Of the 100,000 lines of a workload four hold a mark that no turn may hold.
        max_reject_rate=0.01,
        **job.settings,
    )
    row_map = shards.load_row_map(config, find_files(job.input))
    builder = row_map.mapper.builder
    fastokens: Any = builder.encoder._encoder._build  # pyright: ignore[reportPrivateUsage]
    if fastokens is not None:
        # Built on a thread that the job would wait for; its check is no loading.
        fastokens.result()
    shards.load_row_map = lambda config, files: row_map

    def make() -> Made:
        counts = prepare(config, quiet=True).counts
        return Made(counts["rows"], counts["tokens"]["total"])

    return make
