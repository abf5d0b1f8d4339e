"""Tasks as a job array of a real Slurm: one machine that plays two nodes (scripts/start_slurm.sh)."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.config import PrepareConfig
from pipeline.errors import UsageError, WorkerFailed
from pipeline.job.engines import slurm
from pipeline.job.engines.slurm import SlurmEngine, format_ranges, format_script
from pipeline.job.prepared import Prepared
from tests.conftest import ROOT
from tests.job.engines.conftest import KILL

RunJob = Callable[..., Prepared]

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "squeue")
CAN_START = all(map(shutil.which, NEEDED)) and os.geteuid() == 0
needs_slurm = pytest.mark.skipif(
    not CAN_START, reason="no Slurm to start: apt-get install slurm-wlm munge, and be root"
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a running cluster of two nodes of one core."""
    folder = tmp_path_factory.mktemp("slurm")
    script = str(ROOT / "scripts" / "start_slurm.sh")
    started = subprocess.run(
        [script, "start", str(folder)], capture_output=True, text=True, check=False
    )
    assert started.returncode == 0, started.stderr
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield folder
        subprocess.run([script, "stop", str(folder)], check=True)


def queue() -> str:
    return subprocess.run(
        ["squeue", "--noheader"], capture_output=True, text=True, check=True
    ).stdout


@needs_slurm
@pytest.mark.usefixtures("cluster")
def test_a_job_array_gives_the_set_of_one_process(run_job: RunJob, digest: str) -> None:
    made = run_job("slurm", tasks=3, partition="main", time="00:05:00")
    assert made.digest == digest
    assert made.manifest["shards"]["reused"] == 0
    assert [path.name for path in Path(made.output).parent.iterdir()] == ["set"]


@needs_slurm
@pytest.mark.usefixtures("cluster")
def test_a_task_that_fails_is_submitted_again(
    run_job: RunJob, machine_with: Callable[..., str], digest: str, tmp_path: Path
) -> None:
    venv = machine_with(f"if len(made) == 2 and is_first('killed'): {KILL}", at_shard=True)
    assert run_job("slurm", tasks=2, venv=venv).digest == digest
    assert (tmp_path / "killed").exists()


@needs_slurm
@pytest.mark.usefixtures("cluster")
def test_a_task_that_is_requeued_in_the_middle_ends_the_job_all_the_same(
    run_job: RunJob, machine_with: Callable[..., str], digest: str, tmp_path: Path
) -> None:
    # Its first attempt stands still after two shards, as on a node that hangs.
    venv = machine_with(
        "import time\n"
        "    if len(made) == 2 and is_first('still'):\n"
        "        (told / 'job').write_text(os.environ['SLURM_JOB_ID'])\n"
        "        time.sleep(600)",
        at_shard=True,
    )
    requeued: list[int] = []

    def requeue() -> None:
        deadline = time.monotonic() + 60
        while not (tmp_path / "job").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        job = (tmp_path / "job").read_text()
        requeued.append(subprocess.run(["scontrol", "requeue", job], check=False).returncode)

    other = threading.Thread(target=requeue)
    other.start()
    made = run_job("slurm", tasks=2, venv=venv)
    other.join()
    assert requeued == [0]
    assert made.digest == digest


@needs_slurm
@pytest.mark.usefixtures("cluster")
def test_a_task_that_fails_again_and_again_is_told_with_the_words_of_slurm(
    run_job: RunJob, machine_with: Callable[..., str]
) -> None:
    venv = machine_with("sys.exit(7)")
    with pytest.raises(
        WorkerFailed, match=r"task 0: slurm job \d+_0: .*JobState FAILED.*ExitCode 7:0.*00000\.log"
    ):
        run_job("slurm", tasks=1, venv=venv)
    assert queue() == ""


@needs_slurm
@pytest.mark.usefixtures("cluster")
def test_a_machine_with_another_library_ends_the_job_and_its_array(
    run_job: RunJob, machine_with: Callable[..., str]
) -> None:
    venv = machine_with(
        "version = metadata.version\n"
        "metadata.version = lambda name: '0.0.9' if name == 'tokenizers' else version(name)"
    )
    with pytest.raises(WorkerFailed, match=r"seal\.versions\.tokenizers differs on .*0\.0\.9"):
        run_job("slurm", tasks=8, workers=1, venv=venv)
    deadline = time.monotonic() + 30
    while queue() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert queue() == ""


@needs_slurm
@pytest.mark.usefixtures("cluster")
def test_what_sbatch_refuses_is_wrong_usage(run_job: RunJob) -> None:
    with pytest.raises(UsageError, match=r"sbatch: .*[Pp]artition"):
        run_job("slurm", partition="nowhere")


# ---- without Slurm


def test_without_its_commands_slurm_is_wrong_usage(
    run_job: RunJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm.shutil, "which", lambda _: None)
    with pytest.raises(UsageError, match=r"executor: slurm: sbatch, squeue, .* not found"):
        run_job("slurm")


def test_the_script_asks_for_what_the_settings_say(tmp_path: Path) -> None:
    config = PrepareConfig(
        input=("a",),
        tokenizer="t/t",
        output="out/my set",
        executor="slurm",
        workers=5,
        partition="cpu",
        time="04:00:00",
        cpus_per_task=3,
        venv="/shared/env",
    )
    lines = format_script(config, tmp_path / "plan.json", [0, 1, 2, 7]).splitlines()
    assert lines[0] == "#!/bin/sh"
    assert "#SBATCH --array=0-2,7%5" in lines
    assert "#SBATCH --job-name='context-frozen-my set'" in lines
    assert {"#SBATCH --partition=cpu", "#SBATCH --time=04:00:00", "#SBATCH --requeue"} <= set(lines)
    assert "#SBATCH --cpus-per-task=3" in lines
    assert lines[-1].startswith("exec /shared/env/bin/python -P -m pipeline.job.engines.task ")
    assert lines[-1].endswith('plan.json "$SLURM_ARRAY_TASK_ID"')


def test_settings_that_nobody_gave_are_left_to_the_cluster(tmp_path: Path) -> None:
    config = PrepareConfig(input=("a",), tokenizer="t/t", output="o", executor="slurm")
    script = format_script(config, tmp_path / "plan.json", [0])
    assert "--partition" not in script
    assert "--time" not in script


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([3], "3"), ([0, 1, 2], "0-2"), ([0, 2, 4], "0,2,4"), ([1, 2, 9, 10, 12], "1-2,9-10,12")],
)
def test_numbers_are_written_as_ranges(numbers: list[int], expected: str) -> None:
    assert format_ranges(numbers) == expected


def test_a_controller_that_is_away_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands = {
        "sbatch": "cat > /dev/null; echo '12;cluster'",
        # Each answer is a file, in order.
        "squeue": f"cd {tmp_path}/answers; set -- *; said=$(cat $1); rm $1; echo $said;"
        " test \"$said\" != down || { echo 'cannot contact slurm' >&2; exit 1; }",
        "scancel": ":",
        "scontrol": ":",
    }
    for name, command in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "answers").mkdir()
    for number, answer in enumerate(["down", "down", "PENDING", "down", ""]):
        (tmp_path / "answers" / str(number)).write_text(answer)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    config = PrepareConfig(input=("a",), tokenizer="t/t", output="o", executor="slurm")
    with SlurmEngine(config).started(tmp_path / "plan.json", [0]) as run:
        assert run.job == "12"
        assert [run.is_running() for _ in range(5)] == [True, True, True, True, False]
