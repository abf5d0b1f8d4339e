"""What the command says: it moves no cursor, and where nobody can read it, the exit code still says it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.command import main
from pipeline.cli.streams import say, say_json

HOSTILE = "a\x1b[31mred\x07\x9b2J\u202eevil\u2028"


def run(shell: str, **variables: str) -> tuple[int, str]:
    """Return the exit code of the command in a shell line, and what reached its own terminal."""
    done = subprocess.run(
        ["bash", "-c", shell.replace("CF", f"{sys.executable} -m pipeline.cli.command")],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("shell", "code", "words"),
    [
        ("CF --help > /dev/full", 1, "standard output cannot be written: No space left"),
        ("CF --help >&-", 1, "standard output cannot be written: it is closed"),
        ("CF verify SET > /dev/full", 0, "standard output cannot be written: No space left"),
        ("CF nothing 2> /dev/full >&-", 2, ""),
        ("CF nothing 2>&-", 2, ""),
        ("CF --help | head -c 1 > /dev/null; exit ${PIPESTATUS[0]}", 0, ""),
    ],
)
def test_the_exit_code_says_what_was_done_where_words_cannot(
    shell: str, code: int, words: str, quickstart_set: Path
) -> None:
    found, printed = run(shell.replace("SET", str(quickstart_set)))
    assert found == code
    assert words in printed
    assert "Traceback" not in printed
    assert "Exception" not in printed


def test_an_ascii_terminal_shows_escapes(quickstart_set: Path, repository: Path) -> None:
    code, printed = run(
        f"CF inspect {quickstart_set} --rows 1 --tokenizer {repository}/configs/tokenizer",
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONIOENCODING="ascii",
    )
    assert code == 0
    assert printed.isascii()
    assert r"\u258c" in printed


def test_a_fault_of_ours_is_one_line_and_its_own_code() -> None:
    script = (
        "import sys, pipeline.cli.command as cli\n"
        "sys.argv = ['context-frozen', 'verify']\n"
        "cli.VERBS['verify'] = cli.Verb(lambda args: {}['\\x1b'], '')\n"
        "sys.exit(cli.run_command())"
    )
    for variables, lines in (({}, 1), ({"CONTEXT_FROZEN_TRACEBACK": "1"}, 5)):
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env={**os.environ, **variables},
            timeout=120,
        )
        assert done.returncode == 70
        assert len(done.stderr.splitlines()) >= lines
        assert ("Traceback" in done.stderr) == bool(variables)


def test_words_and_json_of_others_act_on_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    say_json({"id": HOSTILE, "lone": "\ud800"})
    words, line = capsys.readouterr().out.splitlines()
    assert words.isprintable()
    assert line.isprintable()
    assert json.loads(line) == {"id": HOSTILE, "lone": "\ud800"}


@pytest.mark.parametrize("verb", ["verify", "report", "diff", "clean"])
def test_a_folder_with_a_hostile_name_acts_on_no_terminal(
    verb: str, quickstart_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / HOSTILE
    shutil.copytree(quickstart_set, folder / "set")
    more = [str(quickstart_set)] if verb == "diff" else []
    (folder / ".set.work").mkdir()
    main([verb, str(folder if verb == "clean" else folder / "set"), *more])
    main([verb, str(folder / "none"), *more])
    written = capsys.readouterr()
    assert all(char.isprintable() or char == "\n" for char in written.out + written.err)
