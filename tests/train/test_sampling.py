"""Batches by length and by context: budgets, ranks, epochs, resuming, padding."""

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
from pipeline.train.sampling import ContextGroupSampler, LengthBatchSampler

SAMPLERS = (LengthBatchSampler, ContextGroupSampler)
both_samplers = pytest.mark.parametrize("sampler_type", SAMPLERS)


def make_lengths(count: int, seed: int = 0, contexts: int | None = None) -> dict[str, Any]:
    """Rows as the agent conversations have them: long contexts, short continuations."""
    random = np.random.default_rng(seed)
    context = random.integers(0, contexts or count, count)
    context_len = random.lognormal(8, 0.8, contexts or count).astype(int)[context] + 1
    continuation = random.lognormal(4, 0.8, count).astype(int) + 1
    return {
        "context_len": context_len,
        "total_len": context_len + continuation,
        "context_hash": [f"context-{place}" for place in context],
    }


lengths_strategy = st.lists(
    st.tuples(st.integers(1, 300), st.integers(1, 60), st.integers(0, 3)), min_size=4, max_size=60
).map(
    lambda rows: {
        # Rows of one context have one context length.
        "context_len": [1 + 7 * context if context else length for length, _, context in rows],
        "total_len": [
            (1 + 7 * context if context else length) + extra for length, extra, context in rows
        ],
        "context_hash": [
            f"shared {context}" if context else f"own {place}"
            for place, (_, _, context) in enumerate(rows)
        ],
    }
)


@settings(max_examples=60, deadline=None)
@given(rows=lengths_strategy, world_size=st.integers(1, 4), seed=st.integers(0, 99))
@both_samplers
def test_ranks_share_an_epoch_evenly_and_repeat_no_row(
    sampler_type: Any, rows: dict[str, Any], world_size: int, seed: int
) -> None:
    budgets = {"context_tokens": 600, "continuation_tokens": 120, "seed": seed}
    ranks = [
        list(sampler_type(rows, **budgets, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    seen = [row for batches in ranks for batch in batches for row in batch]
    assert len(seen) == len(set(seen))
    assert len(rows["context_len"]) - len(seen) < world_size


@settings(max_examples=60, deadline=None)
@given(rows=lengths_strategy)
@both_samplers
def test_a_batch_of_several_rows_keeps_both_budgets(
    sampler_type: Any, rows: dict[str, Any]
) -> None:
    frozen = np.array(rows["context_len"]) - 1
    live = np.array(rows["total_len"]) - frozen
    sampler = sampler_type(rows, context_tokens=600, continuation_tokens=120)
    batches = list(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(len(frozen)))
    for batch in batches:
        if len(batch) > 1:
            assert len(batch) * frozen[batch].max() <= 600
            assert len(batch) * live[batch].max() <= 120


@both_samplers
def test_same_seed_gives_the_same_batches_and_epochs_differ(sampler_type: Any) -> None:
    rows = make_lengths(200, contexts=80)
    first, second = sampler_type(rows, seed=4), sampler_type(rows, seed=4)
    epochs = [list(first), list(first)]
    assert [list(second), list(second)] == epochs
    assert epochs[0] != epochs[1]
    assert {frozenset(batch) for batch in epochs[0]} != {frozenset(batch) for batch in epochs[1]}
    assert list(sampler_type(rows, seed=5)) != epochs[0]


def test_set_epoch_starts_that_epoch_and_keeps_a_running_one() -> None:
    rows = make_lengths(200)
    epochs = LengthBatchSampler(rows)
    expected = [list(epochs), list(epochs)]
    sampler = LengthBatchSampler(rows)
    sampler.set_epoch(1)
    assert list(sampler) == expected[1]
    sampler.set_epoch(0)
    taken = list(itertools.islice(sampler, 3))
    sampler.set_epoch(0)
    assert taken + list(sampler) == expected[0]
    sampler.set_epoch(0)
    list(itertools.islice(sampler, 3))
    sampler.set_epoch(1)
    assert list(sampler) == expected[1]


@both_samplers
def test_batches_come_in_no_order_of_length(sampler_type: Any) -> None:
    rows = make_lengths(400, contexts=200)
    longest = [max(rows["total_len"][row] for row in batch) for batch in sampler_type(rows)]
    rises = sum(later > earlier for earlier, later in itertools.pairwise(longest))
    assert 0.3 < rises / len(longest) < 0.7


@both_samplers
def test_a_restored_sampler_goes_on_where_the_state_was_taken(sampler_type: Any) -> None:
    rows = make_lengths(300, contexts=100)
    whole, stopped, restored = (sampler_type(rows) for _ in range(3))
    expected = [list(whole), list(whole)][1]
    list(stopped)
    taken = list(itertools.islice(stopped, 5))
    restored.load_state_dict(stopped.state_dict())
    assert taken + list(restored) == expected


def test_a_state_counts_the_batches_trained_not_those_taken_ahead() -> None:
    rows = make_lengths(300)
    expected = list(LengthBatchSampler(rows))
    sampler = LengthBatchSampler(rows)
    list(itertools.islice(sampler, 4))
    restored = LengthBatchSampler(rows)
    restored.load_state_dict(sampler.state_dict(batches_done=3))
    assert list(restored) == expected[3:]


@pytest.mark.parametrize(
    "other",
    [
        LengthBatchSampler(make_lengths(50, seed=1)),
        LengthBatchSampler(make_lengths(50), seed=1),
        LengthBatchSampler(make_lengths(50), context_tokens=9_000),
        LengthBatchSampler(make_lengths(50), rank=0, world_size=2),
        ContextGroupSampler(make_lengths(50)),
    ],
    ids=["rows", "seed", "budget", "ranks", "kind"],
)
def test_a_state_of_another_plan_is_refused(other: Any) -> None:
    with pytest.raises(UsageError, match="expected the same rows, budgets, seed and world_size"):
        other.load_state_dict(LengthBatchSampler(make_lengths(50)).state_dict())


def test_rows_of_one_context_share_a_batch() -> None:
    rows = make_lengths(120, contexts=30)
    hashes = np.array(rows["context_hash"])
    # A budget that every group of these fits.
    batches = list(ContextGroupSampler(rows, context_tokens=400_000, continuation_tokens=50_000))
    homes = [set(hashes[batch]) for batch in batches]
    assert len(homes) > 1
    assert sum(map(len, homes)) == len(set(hashes))


def test_a_group_over_the_budget_is_cut_and_stays_whole_otherwise() -> None:
    rows = {"context_len": [101] * 7, "total_len": [111] * 7, "context_hash": ["same"] * 7}
    sizes = sorted(map(len, ContextGroupSampler(rows, context_tokens=300)))
    assert sizes == [1, 3, 3]


@both_samplers
def test_padding_on_long_contexts_is_under_five_per_cent(sampler_type: Any) -> None:
    rows = make_lengths(1500)
    share = sampler_type(rows).padding_share()
    assert share.both < 0.05
    assert share.context < 0.05
    random = np.random.default_rng(0).permutation(1500).reshape(-1, 5)
    frozen = np.array(rows["context_len"]) - 1
    random_share = 1 - frozen.sum() / (5 * frozen[random].max(axis=1)).sum()
    assert random_share > 0.3


def test_padding_share_counts_a_shared_context_once() -> None:
    rows = {
        "context_len": [101, 101, 101, 51],
        "total_len": [103, 105, 105, 53],
        "context_hash": ["a", "a", "a", "b"],
    }
    share = ContextGroupSampler(rows).padding_share()
    # One batch: contexts 100 and 50 in 2 x 100 cells, continuations 3, 5, 5 and 3 in 4 x 5.
    assert share == pytest.approx((1 - 150 / 200, 1 - 16 / 20, 1 - 166 / 220))


def test_a_row_over_a_budget_is_a_batch_of_its_own_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = {"context_len": [5, 5000, 6], "total_len": [9, 5010, 9]}
    with caplog.at_level(logging.WARNING):
        sampler = LengthBatchSampler(rows, context_tokens=1000)
    assert "1 rows exceed a budget alone (the longest: 4999 + 11 tokens)" in caplog.text
    assert sorted(map(sorted, sampler)) == [[0, 2], [1]]


def test_rows_that_ranks_cannot_share_are_left_out_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    context_lens = [900, 800, 700, 600, 550]
    rows = {"context_len": context_lens, "total_len": [length + 10 for length in context_lens]}
    samplers = [
        LengthBatchSampler(rows, context_tokens=1000, rank=rank, world_size=2) for rank in (0, 1)
    ]
    with caplog.at_level(logging.WARNING):
        epochs = [
            {row for sampler in samplers for batch in sampler for row in batch} for _ in range(9)
        ]
    assert {len(epoch) for epoch in epochs} == {4}
    assert len(set.union(*epochs)) == 5
    assert "1 of 5 rows are left out of epoch 0: 2 ranks cannot share them evenly" in caplog.text


def test_a_loader_takes_batches_from_rows_and_from_arrow_tables() -> None:
    lengths = make_lengths(40)
    rows = Dataset.from_dict(
        {
            "input_ids": [np.arange(total) for total in lengths["total_len"]],
            "context_len": lengths["context_len"],
            "total_len": lengths["total_len"],
        }
    )
    collate = ContextFrozenCollator("split")
    sampler = LengthBatchSampler(rows)
    by_rows = DataLoader(rows.with_format("numpy"), batch_sampler=sampler, collate_fn=collate)
    first = [batch["context_input_ids"].shape for batch in by_rows]
    sampler.set_epoch(0)
    arrow = rows.with_format("arrow")
    by_table = DataLoader(arrow, sampler=sampler, batch_size=None, collate_fn=collate)
    assert [batch["context_input_ids"].shape for batch in by_table] == first
    assert sum(shape[0] for shape in first) == 40


@pytest.mark.parametrize(
    ("sampler_type", "column"),
    [(LengthBatchSampler, "total_len"), (ContextGroupSampler, "context_hash")],
)
def test_a_missing_column_is_named_with_the_remedy(sampler_type: Any, column: str) -> None:
    rows = make_lengths(4)
    del rows[column]
    with pytest.raises(UsageError, match=f"no column {column} .*columns: full"):
        sampler_type(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 2, "world_size": 2}, "rank is 2 of 2"),
        ({"context_tokens": 0}, "context_tokens is 0; expected a budget of 1 or more"),
        ({"continuation_tokens": -5}, "continuation_tokens is -5"),
        ({"rank": 0, "world_size": 9}, "4 rows for 9 ranks; expected at least one each"),
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LengthBatchSampler(make_lengths(4), **arguments)
