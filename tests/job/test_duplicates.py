"""Ids that stand twice: an example counts once, and a clash of two is never silent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.job.duplicates import Duplicates, Entry, find_duplicates

CHOICES = ("error", "first", "last")


def find(
    lines: list[tuple[str, str]],
    on_duplicate: Any = "error",
    earlier: Mapping[str, str] | None = None,
    points: int = 1,
) -> Duplicates:
    """Return the duplicates of lines given as id and content, each with ``points`` entries."""
    entries = [
        Entry(id_, f"e.jsonl:{number}", content.encode())
        for number, (id_, content) in enumerate(lines, 1)
        for _ in range(points)
    ]
    there = {id_: content.encode() for id_, content in (earlier or {}).items()}
    return find_duplicates(enumerate(entries), on_duplicate, there)


@pytest.mark.parametrize("on_duplicate", CHOICES)
def test_different_ids_are_no_duplicates(on_duplicate: Any) -> None:
    found = find([("a", "1"), ("b", "1"), ("c", "2")], on_duplicate, {"d": "1"})
    assert found == Duplicates()


@pytest.mark.parametrize("on_duplicate", CHOICES)
def test_a_line_again_is_kept_once_and_is_no_fault(on_duplicate: Any) -> None:
    found = find([("a", "1"), ("b", "2"), ("a", "1")], on_duplicate)
    assert found.places == [2]
    assert (found.faults, found.replaced) == (set(), {})
    reject = found.rejects[2]
    assert (reject.file, reject.line, reject.id, reject.code) == ("e.jsonl", 3, "a", "duplicate_id")
    assert "e.jsonl:1 has it already (the same line again)" in reject.reason


def test_two_examples_of_one_id_are_a_fault() -> None:
    found = find([("a", "1"), ("a", "2")])
    assert (found.places, found.faults) == ([1], {1})
    assert "e.jsonl:1 has it already (another example)" in found.rejects[1].reason


def test_first_keeps_the_first_and_is_no_fault() -> None:
    found = find([("a", "1"), ("a", "2"), ("a", "3")], "first")
    assert (found.places, found.faults) == ([1, 2], set())


def test_last_keeps_the_last_and_names_it() -> None:
    found = find([("a", "1"), ("a", "2"), ("a", "3")], "last")
    assert (found.places, found.faults) == ([0, 1], set())
    assert found.rejects[0].line == 1
    assert "e.jsonl:2 has another example of this id" in found.rejects[0].reason
    assert "e.jsonl:3 has another example of this id" in found.rejects[1].reason


def test_last_keeps_what_comes_again_after_another() -> None:
    assert find([("a", "1"), ("a", "2"), ("a", "1")], "last").places == [0, 1]
    assert find([("a", "1"), ("a", "2"), ("a", "1")], "first").places == [1, 2]


def test_the_points_of_one_line_are_no_duplicates_and_go_together() -> None:
    assert find([("a", "1")], points=3) == Duplicates()
    assert find([("a", "1"), ("a", "2")], "last", points=3).places == [0, 1, 2]
    assert find([("a", "1"), ("a", "2")], "first", points=3).places == [3, 4, 5]
    assert find([("a", "1"), ("a", "2")], "error", points=3).faults == {3, 4, 5}


# ---- beside a set


@pytest.mark.parametrize("on_duplicate", CHOICES)
def test_an_example_of_the_set_is_there_already_and_no_reject(on_duplicate: Any) -> None:
    found = find([("a", "1"), ("b", "2")], on_duplicate, {"a": "1"})
    assert (found.already_there, found.rejects, found.places) == ({0}, {}, [0])


def test_another_example_of_an_id_of_the_set_is_settled_like_any_other() -> None:
    clash = [("a", "2")]
    refused = find(clash, "error", {"a": "1"})
    assert refused.faults == {0}
    assert "the set has it already (another example)" in refused.rejects[0].reason
    assert find(clash, "first", {"a": "1"}).places == [0]
    replacing = find(clash, "last", {"a": "1"})
    assert (replacing.places, replacing.replaced) == ([], {"a": "e.jsonl:1"})


def test_what_replaced_the_sets_example_can_be_replaced_too() -> None:
    found = find([("a", "2"), ("a", "3")], "last", {"a": "1"})
    assert (found.places, set(found.replaced)) == ([0], {"a"})


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("123")), max_size=8),
    st.dictionaries(st.sampled_from("abc"), st.sampled_from("123")),
    st.sampled_from(CHOICES),
)
def test_one_example_of_each_id_stays(
    lines: list[tuple[str, str]], earlier: dict[str, str], on_duplicate: Any
) -> None:
    found = find(lines, on_duplicate, earlier)
    kept = [line for place, line in enumerate(lines) if place not in found.places]
    in_set = {id_: content for id_, content in earlier.items() if id_ not in found.replaced}
    everything = [*in_set.items(), *kept]
    assert sorted(id_ for id_, _ in everything) == sorted({id_ for id_, _ in lines} | set(earlier))
    said = [*earlier.items(), *lines]
    chosen = dict(said if on_duplicate == "last" else reversed(said))
    assert dict(everything) == chosen
    assert found.faults == (
        {
            place
            for place, (id_, content) in enumerate(lines)
            if place in found.places and content != chosen[id_]
        }
        if on_duplicate == "error"
        else set()
    )
    assert not set(found.rejects) & found.already_there
