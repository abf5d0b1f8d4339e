"""Slurm's commands, played on this machine: the tasks of an array are processes, a few at a time.

python fake_slurm.py COMMAND FOLDER ARGS    # sbatch, squeue, scancel, scontrol; run is our own
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def submit(folder: Path) -> None:
    """Start the array that the script on standard input asks for; print its number."""
    script = folder / "script"
    script.write_text(sys.stdin.read(), encoding="utf-8")
    command = [sys.executable, __file__, "run", str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    (folder / "pid").write_text(str(process.pid))
    print(process.pid)


def run_array(folder: Path) -> None:
    """Run the tasks of the script, each with its number and its log."""
    script = folder / "script"
    options = dict(re.findall(r"#SBATCH --([a-z-]+)=(.+)", script.read_text(encoding="utf-8")))
    ranges, _, at_once = options["array"].partition("%")

    def run(task: int) -> None:
        with Path(options["output"].replace("%5a", f"{task:05d}")).open("ab") as log:
            environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task)}
            subprocess.run(["sh", script], stdout=log, stderr=log, env=environment, check=False)

    bounds = [each.partition("-") for each in ranges.split(",")]
    tasks = [
        task for first, _, last in bounds for task in range(int(first), int(last or first) + 1)
    ]
    with ThreadPoolExecutor(int(at_once or 2)) as pool:
        list(pool.map(run, tasks))


def show_queue(folder: Path) -> None:
    """Print a state where the array runs."""
    try:
        status = Path("/proc", (folder / "pid").read_text(), "stat").read_text()
    except FileNotFoundError:
        return
    if status.rpartition(")")[2].split()[0] != "Z":
        print("R")


def cancel(folder: Path) -> None:
    """End the array and its tasks."""
    os.killpg(int((folder / "pid").read_text()), signal.SIGKILL)


if __name__ == "__main__":
    commands = {"sbatch": submit, "run": run_array, "squeue": show_queue, "scancel": cancel}
    if sys.argv[1] in commands:
        commands[sys.argv[1]](Path(sys.argv[2]))
