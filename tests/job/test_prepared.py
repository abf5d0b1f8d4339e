"""What a job left says itself in a notebook and on a terminal, and stands for its set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk

from pipeline import load, prepare
from pipeline.sets.load import verify
from tests.conftest import ROOT, write_lines

SAID = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    rows = [{"id": "a", "messages": list(SAID), "mood": 1}, {"messages": list(SAID) * 2}]
    return {
        "input": str(write_lines(tmp_path / "logs.jsonl", rows)),
        "tokenizer": str(ROOT / "configs" / "tokenizer"),
        "output": str(tmp_path / "set"),
        "num_proc": 1,
        "report": False,
    }


def test_it_is_short_in_a_notebook_and_has_counts_and_digest(settings: dict[str, Any]) -> None:
    prepared = prepare(**settings, quiet=True)
    assert repr(prepared) == (
        f"Prepared({settings['output']!r}: made 2 rows of 2 lines, 0 rejects, "
        f"digest {prepared.digest[:8]}…)"
    )


def test_it_stands_for_its_set(settings: dict[str, Any]) -> None:
    prepared = prepare(**settings, quiet=True)
    assert len(prepared.load()["train"]) == 2
    assert len(prepared.load(exclude_ids=["a"])["train"]) == 1
    assert load(prepared)["train"][:] == prepared.load()["train"][:]
    assert verify(prepared) == []
    assert load_from_disk(prepared)["train"].num_rows == 2


def test_what_was_made_is_printed_unless_it_is_quiet(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare(**settings)
    assert capsys.readouterr().out == f"{prepared.summarize()}\n"
    prepare(**settings, quiet=True)
    assert capsys.readouterr().out == ""


def test_the_summary_says_how_lines_were_read(settings: dict[str, Any]) -> None:
    said = prepare(**settings, quiet=True).summarize()
    assert "\n  lines read as: openai 1, own 1\n" in said
    assert "\n  keys that nobody reads (lines with them): mood (1)\n" in said


def test_answers_of_logs_that_no_row_uses_are_told_of(settings: dict[str, Any]) -> None:
    said = prepare(**settings, quiet=True).summarize()
    assert "\n  3 assistant messages, 2 used; --decisions all would use 3\n" in said
    settings["output"] += "-all"
    assert "would use" not in prepare(**settings, decisions="all", quiet=True).summarize()


def test_a_place_that_was_chosen_has_no_unused_answers(settings: dict[str, Any]) -> None:
    chosen = {"messages": list(SAID) * 2, "decision_idx": 1, "continuation": "better"}
    write_lines(Path(settings["input"]), [chosen])
    assert "would use" not in prepare(**settings, quiet=True).summarize()


def test_what_stands_in_a_name_cannot_act_on_the_terminal(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(**{**settings, "output": str(tmp_path / "\x1bset")})
    assert "\x1b" not in capsys.readouterr().out
