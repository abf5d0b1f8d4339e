"""Run one contender in a process of its own and take its time and memory from outside."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from scripts.bench_peers.workload import Job

ROOT = Path(__file__).resolve().parents[2]

# No hub, no tracking, no version gate, no progress bars, and nothing left behind.
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "AXOLOTL_DO_NOT_TRACK": "1",
    "WANDB_DISABLED": "true",
    "DISABLE_VERSION_CHECK": "1",
}
_CACHES = ("HF_DATASETS_CACHE", "MODELSCOPE_CACHE", "TRITON_CACHE_DIR", "TMPDIR")


@dataclass(frozen=True)
class Run:
    """One run of a contender.

    ``seconds`` are those of the job in its process, without imports and loading the tokenizer
    (``load_seconds``); ``wall_seconds`` those of the whole process. ``peak_pss`` is the most memory
    of the process tree, shared pages divided among their users, sampled five times a second;
    ``max_rss`` the most that one of its processes had resident; both in bytes.
    """

    seconds: float
    load_seconds: float
    rows: int
    tokens: int
    versions: dict[str, str]
    wall_seconds: float
    peak_pss: int
    max_rss: int


class CaseFailed(Exception):
    """A contender that is not installed or did not come to its end; says which."""


class _PssSampler(threading.Thread):
    """Keeps the largest sum of PSS, in bytes, that a process and its descendants had."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._ended = threading.Event()
        self.peak = 0

    def run(self) -> None:
        while not self._ended.wait(0.2):
            self.peak = max(self.peak, self._read())

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def _read(self) -> int:
        total = 0
        try:
            for process in (self._root, *self._root.children(recursive=True)):
                total += process.memory_full_info().pss
        except psutil.Error:  # one of them ended: the sample is smaller than the truth
            pass
        return total


def measure(contender: str, job: Job, python: str, folder: Path | None = None) -> Run:
    """Return the figures of ``contender`` (a module beside this one) run under ``python``.

    ``job.work`` is replaced by a new folder under ``folder`` (the system's by default), which is
    removed again. Raises `CaseFailed`.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-") as name:
        work = Path(name)
        environment = os.environ | _QUIET | {"PYTHONPATH": str(ROOT)}
        for cache in _CACHES:
            (work / cache.lower()).mkdir()
            environment[cache] = str(work / cache.lower())
        text = json.dumps(asdict(replace(job, work=name)))
        command = [python, "-m", "scripts.bench_peers.run_case", contender, text]
        start = time.perf_counter()
        with (work / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            sampler = _PssSampler(process.pid)
            sampler.start()
            _, status, usage = os.wait4(process.pid, 0)
        wall_seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        sampler.stop()
        if process.returncode:
            lines = (work / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
            raise CaseFailed(f"exit {process.returncode}: {lines[-1] if lines else 'no output'}")
        answer = json.loads((work / "result.json").read_bytes())
    if "missing" in answer:
        raise CaseFailed(f"not installed: {answer['missing']}")
    return Run(
        **answer,
        wall_seconds=wall_seconds,
        peak_pss=sampler.peak,
        max_rss=usage.ru_maxrss * 1024,
    )
