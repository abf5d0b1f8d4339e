"""The benchmark: contenders do the same work, ratios are taken within a round, failures are told."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scripts import bench_growth, bench_prepare
from scripts.bench_peers.measure import CaseFailed, Run, measure
from scripts.bench_peers.workload import (
    Job,
    conversation_of,
    read_lines,
    write_plain_lines,
    write_small_workload,
)
from scripts.bench_prepare import Case, Results
from tests.conftest import write_lines

OURS, SLOW = Case("ours", 1), Case("trl", 1)


def make_run(seconds: float, **changes: Any) -> Run:
    values = {
        "seconds": seconds,
        "load_seconds": 0.0,
        "rows": 1,
        "tokens": 1,
        "versions": {},
        "wall_seconds": seconds,
        "peak_pss": 1,
        "max_rss": 1,
    }
    return Run(**(values | changes))


def make_results(**seconds: list[float]) -> Results:
    results = Results()
    for name, values in seconds.items():
        column, _, num_proc = name.partition("_on_")
        results.runs[Case(column, int(num_proc or 1))] = [make_run(value) for value in values]
    return results


def test_a_run_of_two_contenders_makes_the_same_rows_and_tells_their_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_file = tmp_path / "report.json"
    columns = ["ours", "straightforward", "llamafactory"]
    bench_prepare.main(
        ["--columns", *columns, "--rounds", "1", "--num-proc", "1", "--json", str(report_file)]
    )
    report = json.loads(report_file.read_text(encoding="utf-8"))
    ours, other = (report["columns"][name]["runs"]["1"][0] for name in columns[:2])
    assert ours["rows"] == other["rows"] == 64
    # Ours closes each continuation with its end of turn; all else are the same ids.
    assert ours["tokens"] == other["tokens"] + 64
    assert ours["versions"]["transformers"] == other["versions"]["transformers"]
    for run in (ours, other):
        assert 0 < run["seconds"] < run["seconds"] + run["load_seconds"] < run["wall_seconds"]
        assert 50 * 2**20 < run["max_rss"] < 4 * 2**30
        assert run["peak_pss"] <= 4 * 2**30
    ratio = report["columns"]["straightforward"]["times_longer_than"]["ours"]["median"]
    assert ratio == pytest.approx(other["seconds"] / ours["seconds"])
    printed = capsys.readouterr().out
    assert "straightforward" in printed
    assert "llamafactory: not installed: llamafactory" in printed


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    results = make_results(ours=[1.0, 10.0, 1.0], trl=[2.0, 40.0, 3.0])
    ratio = results.times_longer(SLOW, "ours")
    assert ratio is not None
    assert (ratio.least, ratio.median, ratio.most) == (2.0, 3.0, 4.0)


def test_the_best_number_of_processes_is_compared() -> None:
    results = make_results(ours_on_1=[4.0, 4.0], ours_on_2=[2.0, 2.5], trl=[8.0, 10.0])
    assert results.best_case("ours") == Case("ours", 2)
    ratio = results.times_longer(SLOW, "ours")
    assert ratio is not None
    assert ratio.median == 4.0


def test_without_a_reference_there_is_no_ratio() -> None:
    assert make_results(trl=[1.0]).times_longer(SLOW, "ours") is None


def test_the_time_against_the_bare_encoder_is_told() -> None:
    results = make_results(ours=[4.0], bare_fastokens=[2.0])
    lines = bench_prepare.describe_results(results, ["ours", "bare_fastokens"])
    assert lines == ["ours takes 2.00 times as long as bare_fastokens"]


def test_a_contender_that_fails_is_left_out_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[str] = []

    def fail_second_time(module: str, *_: Any) -> Run:
        started.append(module)
        if module == "trl_sft" and started.count(module) == 2:
            raise CaseFailed("exit 1: out of memory")
        return make_run(1.0)

    monkeypatch.setattr(bench_prepare, "measure", fail_second_time)
    job = Job("x.jsonl", "tokenizer", "work")
    results = bench_prepare.run_rounds([SLOW, OURS], job, {}, 3, Console(quiet=True))
    assert started == ["trl_sft", "ours", "trl_sft", "ours", "ours"]
    assert len(results.runs[OURS]) == 3
    assert results.best_case("trl") is None
    assert results.failures == {SLOW: "exit 1: out of memory"}
    report = bench_prepare.report_of(results, [SLOW, OURS])
    assert report["trl"]["failures"] == {1: "exit 1: out of memory"}
    assert report["trl"]["runs"] == {}


def test_a_process_that_dies_is_a_failure_that_tells_its_exit(tmp_path: Path) -> None:
    job = Job(str(tmp_path / "x"), "tokenizer", "")
    with pytest.raises(CaseFailed, match="exit 1: no output"):
        measure("ours", job, "false", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_crash_tells_its_last_line(tmp_path: Path) -> None:
    job = Job(str(tmp_path / "x"), "tokenizer", "")
    with pytest.raises(CaseFailed, match=r"No module named 'scripts\.bench_peers\.nobody'"):
        measure("nobody", job, sys.executable, tmp_path)


@pytest.mark.parametrize("pair", ["nobody=python", "trl=/nowhere/python", "trl"])
def test_an_interpreter_must_be_there_and_named_by_a_column(pair: str) -> None:
    with pytest.raises(SystemExit, match="expected NAME=PATH"):
        bench_prepare.read_pythons([pair])


def test_an_interpreter_of_a_venv_is_not_followed_to_its_target(tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    assert bench_prepare.read_pythons([f"trl={link}"]) == {"trl": str(link)}


def test_the_small_workload_is_the_same_each_time(tmp_path: Path) -> None:
    files = [write_small_workload(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    assert files[0].read_bytes() == files[1].read_bytes()
    lines = list(read_lines(files[0]))
    assert len({line["id"] for line in lines}) == 64
    assert any(line["messages"][0]["role"] == "system" for line in lines)
    assert all(conversation_of(line)[-1]["content"] == line["continuation"] for line in lines)


def test_lines_with_points_are_taken_as_they_are(tmp_path: Path) -> None:
    source = write_small_workload(tmp_path / "a.jsonl", lines=1)
    assert bench_prepare.prepare_input(source, tmp_path) == source


def test_logs_become_lines_that_every_contender_reads(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [
        {"role": "assistant", "content": "Hello, I come first."},
        {"role": "user", "content": [{"type": "text", "text": "Where is "}, {"text": "it?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "here"},
        {"role": "assistant", "content": "Here."},
    ]
    source = write_lines(tmp_path / "logs.jsonl", [{"messages": messages}])
    packed = tmp_path / "logs.jsonl.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    folder = tmp_path / "made"
    folder.mkdir()
    path = bench_prepare.prepare_input(packed, folder)
    assert path == folder / "logs.jsonl"
    lines = list(read_lines(path))
    assert [line["decision_idx"] for line in lines] == [2, 4]
    called = '<tool_call>\n{"name": "look", "arguments": "{}"}\n</tool_call>'
    assert [line["continuation"] for line in lines] == [called, "Here."]
    assert lines[0]["messages"][1] == {"role": "user", "content": "Where is it?"}
    assert len({line["id"] for line in lines}) == 2
    assert list(read_lines(write_plain_lines(source, tmp_path / "again.jsonl"))) == lines


def test_a_tenth_of_the_lines_is_their_beginning(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"id": str(number)} for number in range(25)])
    tenth = bench_growth.cut_tenth(source, tmp_path / "b.jsonl")
    assert [line["id"] for line in read_lines(tenth)] == ["0", "1"]


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_points_are_spread_and_end_with_the_longest_context(count: int) -> None:
    talk = [
        {"role": role, "content": f"{role} {number}"}
        for number in range(45)
        for role in ("user", "assistant")
    ]
    points = bench_growth.spread_points(talk, "a", count)
    places = [point.decision_idx for point in points]
    assert places == sorted(set(places))
    assert len(places) == count
    assert places[-1] == len(talk) - 1
    assert all(
        point.continuation == talk[place]["content"]
        for point, place in zip(points, places, strict=True)
    )
