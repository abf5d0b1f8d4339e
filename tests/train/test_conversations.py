"""Batches of whole conversations: chains kept together, budgets, ranks, resuming."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pipeline.errors import UsageError
from pipeline.train.collate import ContextFrozenCollator
from pipeline.train.conversations import ConversationSampler

BUDGETS = {"context_tokens": 60, "continuation_tokens": 30}


def make_rows(talks: list[list[tuple[int, int, bool]]]) -> dict[str, Any]:
    """Rows of conversations; a row (context, continuation, is_apart) may share no beginning."""
    rows: dict[str, list[Any]] = {
        name: [] for name in ("input_ids", "context_len", "total_len", "conversation")
    }
    for place, talk in enumerate(talks):
        for context, continuation, is_apart in talk:
            ids = list(range(5, 5 + context)) + [3] * continuation
            ids[0] = len(rows["input_ids"]) + 99 if is_apart else 4
            rows["input_ids"].append(ids)
            rows["context_len"].append(context)
            rows["total_len"].append(len(ids))
            rows["conversation"].append(f"talk-{place}")
    order = np.random.default_rng(1).permutation(len(rows["input_ids"]))
    return {name: [column[place] for place in order] for name, column in rows.items()}


def make_talks(count: int, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return make_rows(
        [
            [
                (int(context), int(random.integers(1, 9)), bool(random.integers(9) == 0))
                for context in random.integers(1, 50, random.integers(1, 7))
            ]
            for _ in range(count)
        ]
    )


one_row = st.tuples(
    st.one_of(st.integers(1, 70), st.integers(61, 70)), st.integers(1, 35), st.booleans()
)
some_talks = st.lists(st.lists(one_row, min_size=1, max_size=6), min_size=4, max_size=14)


def count_tokens(rows: dict[str, Any], batch: list[int]) -> tuple[int, int]:
    """Frozen tokens that one pass over a batch runs, as its collated contexts say, and live ones."""
    chosen = [{name: column[row] for name, column in rows.items()} for row in batch]
    made: Any = ContextFrozenCollator("conversation")(chosen)
    chains = {int(chain) for chain in made["context_index"]}
    frozen = sum(int(made["branch_at"][made["context_index"] == chain].max()) for chain in chains)
    return frozen, int(made["attention_mask"].sum())


@settings(max_examples=60, deadline=None)
@given(talks=some_talks, world_size=st.integers(1, 4), seed=st.integers(0, 9))
def test_every_epoch_has_each_row_once_and_as_many_batches_for_each_rank(
    talks: list[Any], world_size: int, seed: int
) -> None:
    rows = make_rows(talks)
    samplers = [
        ConversationSampler(rows, **BUDGETS, seed=seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for _ in range(2):
        ranks = [list(sampler) for sampler in samplers]
        assert len({len(batches) for batches in ranks}) == 1
        assert all(batch for batches in ranks for batch in batches)
        seen = sorted(row for batches in ranks for batch in batches for row in batch)
        assert seen == list(range(len(rows["input_ids"])))


@settings(max_examples=60, deadline=None)
@given(talks=some_talks)
def test_a_batch_keeps_both_budgets_unless_it_is_one_that_cannot(talks: list[Any]) -> None:
    rows = make_rows(talks)
    for batch in ConversationSampler(rows, **BUDGETS):
        frozen, live = count_tokens(rows, batch)
        longest = max(rows["context_len"][row] for row in batch) - 1
        assert frozen <= max(60, longest)
        assert live <= 30 or len(batch) == 1


@settings(max_examples=60, deadline=None)
@given(talks=some_talks, world_size=st.integers(2, 4))
def test_ranks_wait_in_an_epoch_no_longer_than_its_costliest_batch(
    talks: list[Any], world_size: int
) -> None:
    rows = make_rows(talks)
    ranks = [
        list(ConversationSampler(rows, **BUDGETS, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    costs = [
        [frozen + 3 * live for frozen, live in (count_tokens(rows, batch) for batch in step)]
        for step in zip(*ranks, strict=True)
    ]
    assert sum(max(step) - min(step) for step in costs) <= max(map(max, costs))


def test_a_conversation_whose_contexts_begin_one_another_stays_in_one_batch() -> None:
    random = np.random.default_rng(3)
    rows = make_rows([[(int(n), 3, False) for n in random.integers(2, 50, 4)] for _ in range(40)])
    names = np.array(rows["conversation"])
    homes = [
        set(names[batch])
        for batch in ConversationSampler(rows, context_tokens=200, continuation_tokens=100)
    ]
    assert len(homes) > 5
    assert sum(map(len, homes)) == 40


def test_same_seed_gives_the_same_batches_and_epochs_differ() -> None:
    rows = make_talks(60)
    first, second = (ConversationSampler(rows, **BUDGETS, seed=4) for _ in range(2))
    epochs = [list(first), list(first)]
    assert [list(second), list(second)] == epochs
    assert {frozenset(batch) for batch in epochs[0]} != {frozenset(batch) for batch in epochs[1]}


def test_a_restored_sampler_goes_on_where_the_state_was_taken() -> None:
    rows = make_talks(60)
    whole, stopped, restored = (
        ConversationSampler(rows, **BUDGETS, rank=1, world_size=2) for _ in range(3)
    )
    expected = [list(whole), list(whole)][1]
    list(stopped)
    taken = list(itertools.islice(stopped, 5))
    restored.load_state_dict(stopped.state_dict())
    assert taken + list(restored) == expected


def test_a_state_of_rows_with_other_beginnings_is_refused() -> None:
    rows = make_talks(20)
    state = ConversationSampler(rows).state_dict()
    for row, ids in enumerate(rows["input_ids"]):
        ids[0] = 1000 + row
    with pytest.raises(UsageError, match="expected the same rows, budgets, seed and world_size"):
        ConversationSampler(rows).load_state_dict(state)


def test_more_ranks_than_conversations_share_one_by_its_rows() -> None:
    rows = make_rows([[(length, 2, False) for length in (5, 9, 14, 20, 26)]])
    ranks = [list(ConversationSampler(rows, rank=rank, world_size=3)) for rank in range(3)]
    assert sorted(len(batches[0]) for batches in ranks) == [1, 2, 2]


def test_rows_that_are_batches_alone_are_put_together_before_any_is_left_out() -> None:
    rows = make_rows([[(length, 2, False)] for length in (90, 80, 70, 65, 61)])
    ranks = [
        list(ConversationSampler(rows, **BUDGETS, rank=rank, world_size=2)) for rank in range(2)
    ]
    assert sorted(len(batch) for batches in ranks for batch in batches) == [1, 1, 1, 2]


def test_a_context_over_the_budget_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ConversationSampler(make_rows([[(90, 2, False)], [(5, 2, False)]]), **BUDGETS)
    assert "1 rows exceed a budget alone (the longest: 89 + 3 tokens)" in caplog.text


def test_a_loader_takes_chains_from_arrow_tables() -> None:
    rows = Dataset.from_dict(make_talks(30))
    sampler = ConversationSampler(rows, context_tokens=400, continuation_tokens=100)
    assert list(sampler) == list(
        ConversationSampler(make_talks(30), context_tokens=400, continuation_tokens=100)
    )
    sampler.set_epoch(0)
    loader = DataLoader(
        rows.with_format("arrow"),
        sampler=sampler,
        batch_size=None,
        collate_fn=ContextFrozenCollator("conversation"),
    )
    assert sum(len(batch["branch_at"]) for batch in loader) == len(rows)


def test_rows_without_a_conversation_are_refused_with_the_remedy() -> None:
    rows = make_talks(5)
    del rows["conversation"]
    with pytest.raises(UsageError, match=r"no column conversation .*columns: full"):
        ConversationSampler(rows)


def test_tokens_of_an_epoch_are_told_for_rows_alone_and_for_one_pass() -> None:
    rows = make_rows([[(20, 2, False), (30, 2, False), (11, 2, True)], [(41, 2, False)]])
    assert ConversationSampler(rows).frozen_tokens() == (19 + 29 + 10 + 40, 29 + 10 + 40)
    # A chain that is cut runs its context in each part.
    cut = ConversationSampler(rows, continuation_tokens=3)
    assert cut.frozen_tokens() == (98, 98)
