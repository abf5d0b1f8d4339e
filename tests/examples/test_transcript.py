"""Pairs of transcripts have their shared turns as context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.errors import Rejected
from pipeline.examples.shapes import read_row

ASK = "\n\nHuman: Add 1 and 1\n\nAssistant:"

said = st.text(min_size=1).filter(lambda text: bool(text.strip()) and "\n" not in text)


def refuse(chosen: str, rejected: str) -> str:
    with pytest.raises(Rejected) as caught:
        read_row({"chosen": chosen, "rejected": rejected}, "auto", "file:1")
    assert caught.value.code == "missing_field"
    return caught.value.reason


@given(st.lists(st.tuples(said, said), max_size=3), said, said, said)
def test_what_was_said_is_read_to_the_letter(
    before: list[tuple[str, str]], ask: str, better: str, worse: str
) -> None:
    head = "".join(f"\n\nHuman: {user}\n\nAssistant: {answer}" for user, answer in before)
    head += f"\n\nHuman: {ask}\n\nAssistant: "
    assume(better != worse)
    read = read_row({"chosen": head + better, "rejected": head + worse}, "auto", "file:1")
    context: Any = (read.example.messages or ())[: read.example.decision_idx]
    texts = [message["content"] for message in context]
    assert texts == [*(text for turn in before for text in turn), ask]
    assert read.example.continuation == {"role": "assistant", "content": better}
    assert read.example.rejected == {"role": "assistant", "content": worse}
    assert not read.unread


@pytest.mark.parametrize(
    "text",
    [
        f"{ASK} 2\n\nHuman: Thanks",
        f"{ASK} ",
        f"{ASK}2",
        f"{ASK} 2\n\nAssistant: 3",
        "\n\nHuman: \n\nAssistant: 2",
        "\n\nHuman: Add",
    ],
)
def test_a_text_that_is_no_exact_transcript_is_refused_by_its_name(text: str) -> None:
    assert "chosen is no transcript" in refuse(text, f"{ASK} 3")
    assert "rejected is no transcript" in refuse(f"{ASK} 3", text)


@pytest.mark.parametrize(
    "other",
    ["\n\nHuman: Add 1 and 2\n\nAssistant: 3", f"{ASK} 2\n\nHuman: Sure?\n\nAssistant: 3"],
)
def test_transcripts_that_part_before_the_last_turn_are_refused(other: str) -> None:
    assert "differ before their last turn" in refuse(f"{ASK} 2", other)


def test_other_texts_are_refused_as_before() -> None:
    assert "cannot be told from texts" in refuse(f"{ASK} 2", "3")


def test_every_pair_that_was_found_is_read(shared: Path) -> None:
    path = shared / "found" / "hh.jsonl"
    if not path.exists():
        pytest.skip("no such file")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {read_row(row, "auto", "file:1").format for row in rows} == {"trl"}
