"""A plan read back is the plan that was written, whatever its files are called."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import PrepareConfig
from pipeline.errors import UsageError
from pipeline.job.engines.executors import MOST_TASKS, plan_tasks
from pipeline.job.engines.plan_file import PLAN, JobPlan, with_absolute_paths
from pipeline.lines.files import SourceFile
from pipeline.lines.plan import Piece, SourcePlan, SourceShard
from tests.job.engines.conftest import PlannedJob

names = st.text(min_size=1, max_size=8).filter(lambda text: "\0" not in text and "/" not in text)
sizes = st.integers(0, 2**50)
values = st.recursive(
    st.none() | st.booleans() | sizes | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)


@st.composite
def source_plans(draw: st.DrawFn) -> SourcePlan:
    files = [
        SourceFile(Path("/data") / name, name)
        for name in draw(st.lists(names, min_size=1, max_size=4, unique=True))
    ]
    pieces: list[Piece] = []
    for file in files:
        ends = sorted(draw(st.lists(sizes, min_size=1, max_size=4, unique=True)))
        for start, end in zip([0, *ends], ends, strict=False):
            pieces.append(Piece(file, start, end, draw(sizes), draw(st.integers(0, 2**32 - 1))))
    cuts = sorted(draw(st.sets(st.integers(1, len(pieces)))) | {len(pieces)})
    shards = [
        SourceShard(index, tuple(pieces[begin:end]))
        for index, (begin, end) in enumerate(zip([0, *cuts], cuts, strict=False))
    ]
    sha256 = {
        file.name: draw(st.text("0123456789abcdef", min_size=64, max_size=64)) for file in files
    }
    return SourcePlan(tuple(shards), sha256)


@given(source_plans(), st.dictionaries(st.text(), values, max_size=3), st.integers(1, 9))
def test_a_plan_reads_back_equal(source: SourcePlan, seal: dict[str, object], tasks: int) -> None:
    config = PrepareConfig(
        input=("a", "b"), tokenizer="t/t", output="o", chat_template_kwargs={"x": 1}
    )
    plan = JobPlan(config, source, seal, tasks)
    with tempfile.TemporaryDirectory() as folder:
        path = plan.write(Path(folder))
        assert JobPlan.read(path) == plan
        assert [each.name for each in Path(folder).iterdir()] == [PLAN]


@given(source_plans(), st.integers(1, 9))
def test_every_shard_belongs_to_one_task(source: SourcePlan, tasks: int) -> None:
    config = PrepareConfig(input=("a",), tokenizer="t/t", output="o", executor="slurm", tasks=tasks)
    plan = plan_tasks(config, source, {})
    dealt = [shard.index for task in range(plan.tasks) for shard in plan.shards_of(task)]
    assert sorted(dealt) == [shard.index for shard in source.shards]
    assert all(plan.shards_of(task) for task in range(plan.tasks))


def test_a_file_name_that_is_no_utf8_is_read_back(tmp_path: Path) -> None:
    file = SourceFile(Path("/data/caf\udce9.jsonl"), "caf\\xe9.jsonl")
    source = SourcePlan((SourceShard(0, (Piece(file, 0, 3, 1, 7),)),), {file.name: "0" * 64})
    config = PrepareConfig(input=("a",), tokenizer="t/t", output="o")
    plan = JobPlan(config, source, {}, 1)
    assert JobPlan.read(plan.write(tmp_path)) == plan


def test_the_plan_of_a_real_job_reads_back_equal(plan_job: Callable[..., PlannedJob]) -> None:
    job = plan_job()
    assert JobPlan.read(job.path) == job.plan
    assert len(job.indexes) > 6


def test_a_plan_names_its_files_with_their_end_and_sha256(
    plan_job: Callable[..., PlannedJob],
) -> None:
    job = plan_job()
    plan = json.loads(job.path.read_bytes())
    ((path, name),) = plan["files"]
    assert (name, max(piece[2] for piece in plan["shards"][-1])) == (
        "in.jsonl",
        Path(path).stat().st_size,
    )
    assert plan["sha256"] == {name: job.plan.seal["input"][0]["sha256"]}


def test_a_task_that_the_plan_has_not_is_refused(plan_job: Callable[..., PlannedJob]) -> None:
    with pytest.raises(UsageError, match="task 3: no such task; the plan has 0 to 2"):
        plan_job(tasks=3).plan.shards_of(3)


@pytest.mark.parametrize("damage", ["missing", "cut", "no object", "format", "setting"])
def test_what_is_no_plan_is_refused(plan_job: Callable[..., PlannedJob], damage: str) -> None:
    path = plan_job().path
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "no object":
        path.write_text("[]", encoding="utf-8")
    else:
        values = json.loads(path.read_bytes())
        values |= {"format": 99} if damage == "format" else {"config": {"speed": 1}}
        path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UsageError, match=r"plan\.json: "):
        JobPlan.read(path)


@pytest.mark.parametrize(
    ("settings", "shards", "expected"),
    [
        ({"tasks": 4}, 9, 4),
        ({"tasks": 40}, 9, 9),
        ({"workers": 2}, 9, 2),
        ({"tasks": 5, "workers": 2}, 9, 5),
        ({}, 9, 9),
        ({}, 5000, MOST_TASKS),
    ],
    ids=str,
)
def test_the_number_of_tasks_follows_the_settings_and_never_exceeds_the_shards(
    settings: dict[str, int], shards: int, expected: int
) -> None:
    file = SourceFile(Path("/data/a"), "a")
    pieces = (Piece(file, at, at + 1, 1, 0) for at in range(shards))
    source = SourcePlan(
        tuple(SourceShard(index, (piece,)) for index, piece in enumerate(pieces)), {"a": "0"}
    )
    config = PrepareConfig(input=("a",), tokenizer="t/t", output="o", executor="slurm", **settings)
    assert plan_tasks(config, source, {}).tasks == expected


def test_the_cut_of_the_input_does_not_depend_on_the_tasks(
    plan_job: Callable[..., PlannedJob],
) -> None:
    assert plan_job(tasks=2).plan.source == plan_job(tasks=5).plan.source


def test_relative_paths_are_made_absolute_and_a_hub_name_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tok").mkdir()
    config = PrepareConfig(input=("a",), tokenizer="tok", output="o", chat_template="t.jinja")
    made = with_absolute_paths(config)
    assert (made.tokenizer, made.chat_template) == (
        str(tmp_path / "tok"),
        str(tmp_path / "t.jinja"),
    )
    named = dataclasses.replace(config, tokenizer="org/model", chat_template=None)
    assert with_absolute_paths(named) == named
