"""SIGTERM and SIGHUP end a command as Ctrl-C does: it says so, and the output is as it was or done."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.cli import command as cli
from pipeline.cli.process import hear_signals
from pipeline.config import PrepareConfig
from pipeline.job.prepare import prepare
from pipeline.sets.place import Target
from tests.conftest import write_lines

ROWS = [{"id": f"e{n}", "context": f"{n} and 1", "continuation": f"{n + 1}"} for n in range(5)]


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_each_signal_says_the_same_and_has_the_code_of_a_shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    def stop(_: object) -> int:
        signal.raise_signal(number)
        pytest.fail("it goes on")

    monkeypatch.setitem(cli.VERBS, "prepare", cli.Verb(stop, ""))
    hear_signals()
    assert cli.main(["prepare"]) == code
    said = "context-frozen: stopped; the output is as it was before; a new run goes on from here\n"
    assert capsys.readouterr().err == said


def test_a_signal_that_is_ignored_stays_so() -> None:
    # What nohup does.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    hear_signals()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_signal_beside_the_exchange_leaves_the_old_set_or_ends_as_done(
    tmp_path: Path,
    make_config: Callable[..., PrepareConfig],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    lines = write_lines(tmp_path / "in.jsonl", ROWS)
    publish = Target.publish

    def stopped(target: Target) -> None:
        if moment == "after":
            publish(target)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Target, "publish", stopped)
    hear_signals()
    if moment == "after":
        made = prepare(make_config(lines))
        assert made.describe() == "made 5 rows"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "set"]
    else:
        with pytest.raises(KeyboardInterrupt):
            prepare(make_config(lines))
        assert not (tmp_path / "set").exists()
