"""Ours: ``pipeline.prepare`` as a user calls it, server rules on, every column written.

`prepare` loads its tokenizer itself; the seconds inside `TextEncoder.from_path`, fastokens built, are
measured in the same call and counted as loading. ``report.html`` is left out: it takes 0.8 s whatever
the size of the set. Everything else counts: locks, hashes of the input, the encoder's
check, probes of the template, seal, card and manifest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.bench_peers.workload import Job, Made

PACKAGE, DISTRIBUTION = "pipeline", "context-frozen"


def load(job: Job) -> Callable[[], Made]:
    """Import what the job imports; return the job."""
    import pipeline.job.build  # noqa: F401
    from pipeline import prepare
    from pipeline.encode import TextEncoder

    load_encoder, spent = TextEncoder.from_path, [0.0]

    def load_timed(*arguments: Any, **options: Any) -> TextEncoder:
        start = time.perf_counter()
        encoder = load_encoder(*arguments, **options)
        # fastokens is loaded on a thread that the job would wait for later; its check is not loading.
        if (build := encoder._encoder._build) is not None:  # pyright: ignore[reportPrivateUsage]
            build.result()
        spent.append(time.perf_counter() - start)
        return encoder

    TextEncoder.from_path = load_timed  # type: ignore[method-assign, assignment]

    def make() -> Made:
        counts = prepare(
            input=job.input,
            tokenizer=job.tokenizer,
            output=str(Path(job.work) / "out"),
            max_len=job.max_len,
            num_proc=job.num_proc,
            report=False,
            **job.settings,
        ).counts
        return Made(counts["rows"], counts["tokens"]["total"], sum(spent))

    return make
