"""Tasks as a job array of Slurm, by its own commands: sbatch, squeue, sacct, scontrol, scancel.

Plain commands and not submitit or datatrove: what counts as done is the markers of our shards, so
their bookkeeping (a pickle or a completion file for each task) would be a second, weaker truth.
"""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Final

from pipeline.config import PrepareConfig
from pipeline.errors import UsageError
from pipeline.job.engines.plan_file import LOGS

logger = logging.getLogger(__name__)

_NEEDED: Final = ("sbatch", "squeue", "scancel", "scontrol")
# How long a controller may be away (it is restarted, a network is down) before the job gives up.
_PATIENCE_SECONDS: Final = 900.0
_COMMAND_SECONDS: Final = 120.0


class SlurmEngine:
    """Runs tasks as one array; a task whose node fails is queued again by Slurm."""

    def __init__(self, config: PrepareConfig) -> None:
        if lacking := [name for name in _NEEDED if shutil.which(name) is None]:
            raise UsageError(
                f"executor: slurm: {', '.join(lacking)} not found; expected Slurm's commands on PATH, "
                "as on a login node"
            )
        self._config = config

    @contextmanager
    def started(self, plan: Path, tasks: Sequence[int]) -> Generator[SlurmRun]:
        """Start tasks of a plan, as `pipeline.job.engines.executors.Engine.started`."""
        script = format_script(self._config, plan, tasks)
        submitted = _run_command(["sbatch", "--parsable"], script)
        if submitted.returncode:
            raise UsageError(
                f"executor: slurm: sbatch: {submitted.stderr.strip() or 'no answer'}; check partition, "
                "time, cpus_per_task and tasks (an array has at most MaxArraySize - 1 of them)"
            )
        # On a federation of clusters the number has the cluster's name behind it.
        run = SlurmRun(submitted.stdout.strip().partition(";")[0])
        logger.info("slurm: tasks %s are job %s", format_ranges(tasks), run.job)
        try:
            yield run
        finally:
            run.stop()


class SlurmRun:
    """The array of number ``job``."""

    poll_seconds = 2.0

    def __init__(self, job: str) -> None:
        self.job = job
        self._heard = time.monotonic()
        self._has_ended = False

    def is_running(self) -> bool:
        """Say whether any task is in the queue or at work.

        A controller that does not answer is waited for; after 15 minutes the tasks count as ended.
        """
        if self._has_ended:
            return False
        asked = _run_command(["squeue", "--noheader", "--jobs", self.job, "--format", "%t"])
        now = time.monotonic()
        if asked.returncode == 0 or "Invalid job id" in asked.stderr:
            self._heard = now
            self._has_ended = not asked.stdout.strip()
        elif now - self._heard > _PATIENCE_SECONDS:
            self._has_ended = True
        return not self._has_ended

    def describe(self, task: int) -> str:
        """Return the state of a task: what sacct remembers, else what scontrol does for some minutes."""
        name = f"{self.job}_{task}"
        form = "--format=State,ExitCode,NodeList"
        asked = _run_command(["sacct", "--noheader", "--parsable2", "-X", "--jobs", name, form])
        if asked.returncode == 0 and asked.stdout.strip():
            state, code, node = asked.stdout.strip().splitlines()[-1].split("|")
            return f"slurm job {name}: {state}, exit code {code}, on {node}"
        asked = _run_command(["scontrol", "--oneliner", "show", "job", name])
        found = dict(re.findall(r"(JobState|Reason|ExitCode|NodeList)=(\S+)", asked.stdout))
        if not found:
            return f"slurm job {name}: Slurm remembers it no longer"
        return f"slurm job {name}: " + ", ".join(f"{key} {value}" for key, value in found.items())

    def stop(self) -> None:
        """Cancel what is queued or runs, also tasks that Slurm is about to queue again."""
        if not self._has_ended:
            _run_command(["scancel", self.job])


def format_script(config: PrepareConfig, plan: Path, tasks: Sequence[int]) -> str:
    """Return the script of an array that runs ``tasks``, each under its own number.

    ``--requeue`` lets Slurm run a task again whose node failed or that was preempted.
    """
    at_once = f"%{config.workers}" if config.workers else ""
    options = {
        "job-name": f"context-frozen-{Path(config.output).name}",
        "array": format_ranges(tasks) + at_once,
        "output": f"{plan.parent / LOGS}/task-%5a.log",
        "open-mode": "append",
        "cpus-per-task": config.cpus_per_task,
        "ntasks": 1,
        "partition": config.partition,
        "time": config.time,
    }
    lines = [
        f"#SBATCH --{name}={shlex.quote(str(value))}"
        for name, value in options.items()
        if value is not None
    ]
    python = str(Path(config.venv).absolute() / "bin" / "python") if config.venv else sys.executable
    # -P: the folder that it runs in is not searched for code.
    command = shlex.join([python, "-P", "-m", "pipeline.job.engines.task", str(plan)])
    return "\n".join(
        [
            "#!/bin/sh",
            *lines,
            "#SBATCH --requeue",
            "export OMP_NUM_THREADS=1",
            f'exec {command} "$SLURM_ARRAY_TASK_ID"',
            "",
        ]
    )


def format_ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as Slurm writes them.

    >>> format_ranges([0, 1, 2, 5, 7, 8])
    '0-2,5,7-8'
    """
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _run_command(
    command: Sequence[str], text: str | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
