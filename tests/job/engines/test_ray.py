"""Tasks on a real Ray cluster of two nodes: the set of one process, whatever is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UsageError, WorkerFailed
from pipeline.job.prepared import Prepared
from tests.conftest import write_lines

pytest.importorskip("ray", reason="Ray is not installed: pip install 'context-frozen[scale]'")

RunJob = Callable[..., Prepared]


class TwoNodes:
    """A cluster of a head and one more node, each of one core."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        self.cluster: Any = Cluster(
            initialize_head=True, head_node_args={**self._node, "include_dashboard": False}
        )
        self.other: Any = self.cluster.add_node(**self._node)

    @property
    def address(self) -> str:
        return self.cluster.address

    def lose_a_node(self) -> None:
        self.cluster.remove_node(self.other, allow_graceful=False)

    def add_a_node(self) -> None:
        self.other = self.cluster.add_node(**self._node)


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = TwoNodes()
        yield nodes
        nodes.cluster.shutdown()


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    """Examples that two tasks work on for some seconds, many shards of `SHARD_BYTES`."""
    rows = [
        {"id": f"e{n}", "context": "2+2=" * 20, "continuation": f"four {n}"} for n in range(500)
    ]
    return write_lines(tmp_path / "large.jsonl", rows)


def workers_of_tasks() -> list[int]:
    """Return the processes that run a task of ours."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"ray::_run_task" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


class During:
    """Does something once, as soon as a job has made some shards and its tasks are at work."""

    def __init__(self, folder: Path, act: Callable[[], None], shards: int = 3) -> None:
        self._folder, self._act, self._shards = folder, act, shards
        self.has_acted = False
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> During:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._has_ended.set()
        self._thread.join()

    def _watch(self) -> None:
        # However long a laden machine takes to start a cluster: until the job has ended.
        while not self._has_ended.is_set():
            if len(list(self._folder.glob("*/0*.json"))) >= self._shards and workers_of_tasks():
                self._act()
                self.has_acted = True
                return
            time.sleep(0.01)


def test_a_cluster_gives_the_set_of_one_process(
    run_job: RunJob, nodes: TwoNodes, digest: str
) -> None:
    made = run_job("ray", tasks=3, ray_address=nodes.address)
    assert made.digest == digest
    assert made.manifest["shards"]["reused"] == 0
    assert [path.name for path in Path(made.output).parent.iterdir()] == ["set"]


def test_a_worker_that_is_killed_in_the_middle_is_replaced(
    run_job: RunJob, nodes: TwoNodes, large_file: Path, tmp_path: Path
) -> None:
    def kill() -> None:
        os.kill(workers_of_tasks()[0], signal.SIGKILL)

    with During(tmp_path / "ray" / ".set.work", kill) as during:
        made = run_job("ray", input=large_file, tasks=2, ray_address=nodes.address)
    assert during.has_acted
    assert made.digest == run_job("none", input=large_file).digest


@pytest.mark.nightly
def test_a_node_that_is_lost_in_the_middle_costs_only_time(
    run_job: RunJob, nodes: TwoNodes, large_file: Path, tmp_path: Path
) -> None:
    with During(tmp_path / "ray" / ".set.work", nodes.lose_a_node) as during:
        made = run_job("ray", input=large_file, tasks=2, ray_address=nodes.address)
    nodes.add_a_node()
    assert during.has_acted
    assert made.digest == run_job("none", input=large_file).digest


@pytest.mark.nightly
def test_a_machine_that_sees_another_input_fails_the_job_with_its_words(
    run_job: RunJob, nodes: TwoNodes, tmp_path: Path, large_file: Path
) -> None:
    def grow() -> None:
        with large_file.open("a") as file:
            file.write("\n")
        os.kill(workers_of_tasks()[0], signal.SIGKILL)

    with (
        During(tmp_path / "ray" / ".set.work", grow) as during,
        pytest.raises(WorkerFailed, match=r"executor ray: .*large\.jsonl has \d+ bytes, the plan"),
    ):
        run_job("ray", input=large_file, tasks=2, ray_address=nodes.address)
    assert during.has_acted
    assert not (tmp_path / "ray" / "set").exists()


def test_an_address_where_no_cluster_is_is_wrong_usage(run_job: RunJob) -> None:
    with pytest.raises(UsageError, match=r"ray_address: 127\.0\.0\.1:1: "):
        run_job("ray", ray_address="127.0.0.1:1")
