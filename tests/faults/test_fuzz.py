"""Mutated lines of every shape: no crash, no hang, no line unaccounted for."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.fuzz_lines import SHAPES, find_broken_promises, mutate_lines


def test_the_same_seed_gives_the_same_lines() -> None:
    first, again, other = (list(mutate_lines(SHAPES[1], 50, seed)) for seed in (7, 7, 8))
    assert first == again
    assert first[1:] != other[1:]


def test_no_mutated_line_breaks_a_promise(tmp_path: Path) -> None:
    assert find_broken_promises(2_000, 11, tmp_path, num_proc=1) == []


@pytest.mark.nightly
def test_a_hundred_thousand_mutated_lines_break_no_promise(tmp_path: Path) -> None:
    assert find_broken_promises(100_000, 12, tmp_path, num_proc=2) == []
