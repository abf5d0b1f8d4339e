"""Rows of a file of examples, shown without a set."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.command import main
from pipeline.sets.load import load
from tests.conftest import ROOT, write_lines

TOKENIZER = str(ROOT / "configs" / "tokenizer")
TURN = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
CHATS = [{"id": name, "messages": TURN * 2} for name in ("one", "two")]


def inspect(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["inspect", *arguments, "--tokenizer", TOKENIZER]) == 0
    return capsys.readouterr().out


def test_a_file_is_shown_as_its_set_would_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = str(write_lines(tmp_path / "logs.jsonl", CHATS)), str(tmp_path / "set")
    shown = inspect(capsys, path, "--decisions", "all", "--rows", "10")
    assert not (tmp_path / "set").exists()
    flags = ["--input", path, "--tokenizer", TOKENIZER, "--output", output, "--decisions", "all"]
    assert main(["prepare", *flags, "--no_report"]) == 0
    capsys.readouterr()
    assert len(load(output)["train"]) == 4
    assert shown == inspect(capsys, output, "--rows", "10")


def test_rows_of_a_file_are_chosen_as_those_of_a_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_lines(tmp_path / "logs.jsonl", CHATS))
    assert inspect(capsys, path, "--id", "two").startswith("row 1  id two")


def test_a_file_needs_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_lines(tmp_path / "logs.jsonl", CHATS))
    assert main(["inspect", path]) == 2
    assert "a file and no set; give --tokenizer" in capsys.readouterr().err


def test_a_file_without_a_line_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs.jsonl").write_text("\n")
    assert main(["inspect", str(tmp_path / "logs.jsonl"), "--tokenizer", TOKENIZER]) == 2
    assert "no line to read" in capsys.readouterr().err
