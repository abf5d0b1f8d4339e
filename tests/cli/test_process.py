"""A process of the command ends at once, and yet loses nothing that it said or owed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

ENDS = """
import atexit, pathlib, sys, threading, time
import pipeline.cli.command as cli
folder = pathlib.Path(sys.argv.pop())
atexit.register((folder / "owed").write_text, "done")
def run(args):
    print("said " * 20_000)
    threading.Thread(target=time.sleep, args=(60,)).start()
    return 1
cli.VERBS["verify"] = cli.Verb(run, "")
cli.run_command()
"""


def test_the_end_waits_for_nothing_and_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS, "verify", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=50,
    )
    assert done.returncode == 1
    assert done.stdout.split() == ["said"] * 20_000
    assert (tmp_path / "owed").read_text() == "done"
    assert done.stderr == ""


@pytest.mark.parametrize("arguments", [["--version"], ["nonsense"]])
def test_the_code_of_a_run_is_that_of_its_process(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, timeout=50)
    assert done.returncode == (0 if arguments == ["--version"] else 2)
