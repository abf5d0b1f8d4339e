"""Run one contender in this process: ``python -m scripts.bench_peers.run_case NAME JOB``.

``JOB`` is a `Job` as JSON. The answer is written to ``work/result.json``, because peers print.
Imports and loading the tokenizer come before the clock starts.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

from scripts.bench_peers.workload import Job

LIBRARIES = ("transformers", "tokenizers", "fastokens", "datasets", "pyarrow", "torch")


def read_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those distributions that are installed, and Python's."""
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def run(name: str, job: Job) -> dict[str, Any]:
    """Return the figures of one run, or ``missing``: the package that is not installed."""
    contender = importlib.import_module(f"scripts.bench_peers.{name}")
    if importlib.util.find_spec(contender.PACKAGE) is None:
        return {"missing": contender.PACKAGE}
    start = time.perf_counter()
    prepare = contender.load(job)
    loaded = time.perf_counter()
    made = prepare()
    ended = time.perf_counter()
    return {
        "seconds": ended - loaded,
        "load_seconds": loaded - start,
        "rows": made.rows,
        "tokens": made.tokens,
        "versions": read_versions((contender.DISTRIBUTION, *LIBRARIES)),
    }


if __name__ == "__main__":
    the_job = Job(**json.loads(sys.argv[2]))
    answer = run(sys.argv[1], the_job)
    (Path(the_job.work) / "result.json").write_text(json.dumps(answer), encoding="utf-8")
