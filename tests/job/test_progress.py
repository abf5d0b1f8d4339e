"""A long job says how far it is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from pipeline.job import progress
from pipeline.job.progress import ProgressReport
from pipeline.job.shard import Progress
from pipeline.job.shard_record import ShardRecord
from pipeline.lines.files import SourceFile
from pipeline.lines.plan import Piece, SourcePlan, SourceShard
from pipeline.rows.line_mapper import ShapeCounts

FILE = SourceFile(Path("in.jsonl"), "in.jsonl")
PLAN = SourcePlan(
    tuple(SourceShard(n, (Piece(FILE, 100 * n, 100 * n + 100, 1, 0),)) for n in range(4)), {}
)
BATCH = Progress(0, "in.jsonl:7", lines=10, rows=8, tokens=5000, rejects=2)


def record_of(index: int) -> ShardRecord:
    return ShardRecord(index, (), 0, "", 0, {}, ShapeCounts())


class Clock:
    """A clock that stands until it is moved."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_it_tells_share_rows_tokens_rejects_and_time_left(clock: Clock) -> None:
    with ProgressReport(PLAN, []) as report:
        clock.now += 10
        report.add_batch(BATCH)
        report.add_batch(BATCH)
        assert report.describe() == "0% of 400 bytes read: 16 rows, 1000 tokens/s, 4 rejects"
        report.end_shard(record_of(0))
        assert report.describe() == (
            "25% of 400 bytes read: 16 rows, 1000 tokens/s, 4 rejects, about 30 s left"
        )


def test_what_an_earlier_run_finished_is_read_and_does_not_count_as_speed(clock: Clock) -> None:
    with ProgressReport(PLAN, [record_of(0), record_of(1)]) as report:
        clock.now += 10
        assert report.describe().startswith("50% of 400 bytes read: 0 rows,")
        report.end_shard(record_of(2))
        assert report.describe().endswith("about 10 s left")
        report.end_shard(record_of(3))
        assert report.describe().endswith("about 0 s left")


def test_where_no_terminal_is_there_is_a_line_every_thirty_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressReport(PLAN, []) as report:
        for _ in range(95):
            clock.now += 1
            report.add_batch(BATCH)
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert [line.split(": ")[2].split(",")[0] for line in lines] == [
        "240 rows",
        "480 rows",
        "720 rows",
    ]
    assert all(line.startswith("context-frozen: 0% of 400 bytes read: ") for line in lines)


def test_a_short_job_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReport(PLAN, []) as report:
        report.add_batch(BATCH)
        for index in range(4):
            report.end_shard(record_of(index))
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar_that_goes_away(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with ProgressReport(PLAN, [record_of(0)]) as report:
        clock.now += 40
        report.add_batch(BATCH)
        report.end_shard(record_of(1))
        report.end_shard(record_of(2))
        report.end_shard(record_of(3))
    shown = terminal.getvalue()
    assert "25%" in shown
    assert "context-frozen:" not in shown
    # The line is wiped, so that what is said next does not stand behind a bar.
    assert shown.endswith("\r")


def test_an_empty_input_is_no_error(clock: Clock) -> None:
    with ProgressReport(SourcePlan((), {}), []) as report:
        assert report.describe() == "0% of 0 bytes read: 0 rows, 0 tokens/s, 0 rejects"
