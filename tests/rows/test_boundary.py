"""The boundary: labels' place is known by construction, nothing is longer than max_len."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.errors import Rejected
from pipeline.rows.lengths import cut_left, fit_context, fit_continuation
from pipeline.rows.table import (
    BoundedRow,
    FittedContext,
    LengthPolicy,
    close_continuations,
    hash_context,
    join_row,
)
from pipeline.tokens.ids import EncodedBatch, Ids

BOS = 1
CONTEXTS = st.lists(st.integers(0, 9), min_size=1, max_size=40)


def ids_of(*ids: int) -> Ids:
    return np.array(ids, np.int32)


# ---- the continuation


@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(2, 40),
    st.integers(1, 10),
    st.none() | st.integers(1, 20),
)
def test_a_continuation_fits_beside_the_least_context(
    length: int, context_len: int, max_len: int, min_context: int, most: int | None
) -> None:
    policy = LengthPolicy(max_len, min_context=min_context, max_continuation=most)
    ids = np.arange(length, dtype=np.int32)
    # A context that is shorter than the least is whole: nothing is kept free for what it lacks.
    room = max_len - min(min_context, context_len)
    limit = room if most is None else min(room, most)
    if length <= limit:
        assert fit_continuation(ids, context_len, policy) == (ids, ())
        return
    with pytest.raises(Rejected, match=f"{length} tokens, at most {limit} are left") as caught:
        fit_continuation(ids, context_len, policy)
    assert caught.value.code == "continuation_too_long"
    cutting = replace(policy, overlong_continuation="cut_right")
    if limit >= 1:
        kept, flags = fit_continuation(ids, context_len, cutting)
        assert (kept.tolist(), flags) == (ids[:limit].tolist(), ("continuation_cut",))
    else:
        with pytest.raises(Rejected):
            fit_continuation(ids, context_len, cutting)


# ---- the context


@given(
    CONTEXTS, st.integers(0, 30), st.integers(2, 40), st.sampled_from([None, BOS]), st.booleans()
)
def test_a_cut_row_fits_and_keeps_the_end_of_its_context(
    context: list[int], continuation_len: int, max_len: int, bos_id: int | None, is_raw: bool
) -> None:
    policy = LengthPolicy(max_len, "cut_left", bos_id=bos_id)
    assume(continuation_len <= policy.limit_continuation(len(context)))
    room = max_len - continuation_len
    fitted = fit_context(ids_of(*context), continuation_len, policy, is_raw=is_raw)
    kept = fitted.ids.tolist()
    assert 1 <= len(kept) == min(len(context), room)
    assert fitted.dropped_tokens == len(context) - len(kept)
    assert fitted.ids.dtype == np.int32
    # The last token predicts the first of the continuation: it is never dropped.
    assert kept[-1] == context[-1]
    keeps_bos = bos_id is not None and context[0] == bos_id and room >= 2
    tail = kept[1:] if keeps_bos else kept
    assert tail == context[len(context) - len(tail) :]
    assert not keeps_bos or kept[0] == bos_id
    was_cut = len(kept) < len(context)
    flags = ("truncated", "raw_cut" if is_raw else "turn_cut")
    assert fitted.flags == (flags if was_cut else ())


@pytest.mark.parametrize("overlong", ["drop_turns", "cut_left", "reject"])
@pytest.mark.parametrize("length", [1, 5, 6])
def test_what_fits_exactly_is_left_alone_by_every_policy(overlong: str, length: int) -> None:
    context = np.arange(length, dtype=np.int32)
    fitted = fit_context(context, 10 - length, LengthPolicy(10, overlong), is_raw=True)
    assert fitted.ids is context
    assert (fitted.dropped_tokens, fitted.dropped_messages, fitted.flags) == (0, 0, ())


def test_one_token_too_many_is_cut_or_refused() -> None:
    context = np.arange(6, dtype=np.int32)
    cut = fit_context(context, 5, LengthPolicy(10, "cut_left"), is_raw=False)
    assert cut.ids.tolist() == [1, 2, 3, 4, 5]
    assert (cut.dropped_tokens, cut.flags) == (1, ("truncated", "turn_cut"))
    with pytest.raises(
        Rejected, match="context 6 \\+ continuation 5 tokens are over max_len 10"
    ) as caught:
        fit_context(context, 5, LengthPolicy(10, "reject"), is_raw=False)
    assert caught.value.code == "too_long"


def test_a_leading_bos_stays_and_is_counted_as_kept() -> None:
    context = ids_of(BOS, 10, 11, 12, 13)
    fitted = fit_context(context, 2, LengthPolicy(5, "cut_left", bos_id=BOS), is_raw=False)
    assert fitted.ids.tolist() == [BOS, 12, 13]
    assert fitted.dropped_tokens == 2


def test_where_one_token_fits_it_is_the_last_not_the_bos() -> None:
    # The last context token predicts the continuation; a lone BOS would predict it from nothing.
    assert cut_left(ids_of(BOS, 10, 11), 1, BOS).tolist() == [11]


def test_an_id_like_the_bos_that_does_not_lead_is_no_bos() -> None:
    assert cut_left(ids_of(10, BOS, 11, 12), 2, BOS).tolist() == [11, 12]
    assert cut_left(ids_of(0, 10, 11, 12), 2, None).tolist() == [11, 12]


def test_bos_id_zero_is_a_bos() -> None:
    assert cut_left(ids_of(0, 10, 11, 12), 2, 0).tolist() == [0, 12]


def test_a_context_below_the_least_is_refused() -> None:
    policy = LengthPolicy(10, "cut_left", min_context=4)
    assert len(fit_context(np.arange(20, dtype=np.int32), 6, policy, is_raw=True).ids) == 4
    with pytest.raises(Rejected, match="lower min_context") as caught:
        fit_context(np.arange(20, dtype=np.int32), 7, policy, is_raw=True)
    assert caught.value.code == "too_long"


def test_a_context_of_no_token_is_refused() -> None:
    with pytest.raises(Rejected) as caught:
        fit_context(ids_of(), 1, LengthPolicy(10), is_raw=True)
    assert caught.value.code == "empty_context"


def test_cutting_leaves_the_given_ids_as_they_were() -> None:
    context = ids_of(BOS, 2, 3, 4, 5)
    fit_context(context, 1, LengthPolicy(3, "cut_left", bos_id=BOS), is_raw=False)
    assert context.tolist() == [BOS, 2, 3, 4, 5]


# ---- rows


@given(CONTEXTS, st.lists(st.integers(0, 9), max_size=20))
def test_a_row_is_context_then_continuation(context: list[int], continuation: list[int]) -> None:
    row = join_row(FittedContext(ids_of(*context)), ids_of(*continuation), ())
    assert row.input_ids.tolist() == context + continuation
    assert row.input_ids.dtype == np.int32
    assert row.context_len == len(context)
    assert row.total_len == len(context) + len(continuation)


def test_a_row_carries_what_was_dropped_and_each_flag_once_in_order() -> None:
    fitted = FittedContext(ids_of(1), 3, 2, ("truncated", "raw_cut"))
    flags = ("think_closed", "double_bos", "truncated", "double_bos")
    row = join_row(fitted, ids_of(2), flags)
    assert row.flags == ("double_bos", "raw_cut", "think_closed", "truncated")
    assert (row.dropped_tokens, row.dropped_messages) == (3, 2)


# ---- context hash


def test_the_context_hash_is_half_a_sha256_of_little_endian_int32() -> None:
    expected = hashlib.sha256(struct.pack("<3i", 5, 70000, 0)).digest()[:16].hex()
    assert hash_context(ids_of(5, 70000, 0)) == expected
    assert hash_context(np.array([5, 70000, 0], np.int64)) == expected  # pyright: ignore[reportArgumentType]


def test_rows_of_one_context_share_its_hash_whatever_follows() -> None:
    context = FittedContext(ids_of(1, 2, 3))
    rows = [join_row(context, ids_of(*tail), ()) for tail in [(4,), (5, 6), (3, 3)]]
    hashes = {row.context_hash for row in rows}
    assert hashes == {hash_context(ids_of(1, 2, 3))}


@given(CONTEXTS, CONTEXTS)
def test_contexts_have_equal_hashes_only_where_they_are_equal(
    left: list[int], right: list[int]
) -> None:
    assert (hash_context(ids_of(*left)) == hash_context(ids_of(*right))) == (left == right)


def test_the_boundary_is_part_of_the_hash_not_of_the_ids() -> None:
    ids = ids_of(1, 2, 3, 4)
    early, late = BoundedRow(ids, 2, 0, 0, ()), BoundedRow(ids, 3, 0, 0, ())
    assert early.context_hash != late.context_hash


@pytest.mark.parametrize("min_context", [1, 3])
@pytest.mark.parametrize("most", [None, 1, 3])
def test_what_is_taken_whole_is_what_no_rule_shortens_or_refuses(
    min_context: int, most: int | None
) -> None:
    for context_len, length, max_len in product(range(1, 7), range(1, 7), range(2, 10)):
        policy = LengthPolicy(max_len, "cut_left", min_context=min_context, max_continuation=most)
        try:
            kept, flags = fit_continuation(ids_of(*range(length)), context_len, policy)
            fitted = fit_context(ids_of(*range(context_len)), len(kept), policy, is_raw=False)
            is_whole = len(fitted.ids) == context_len and not flags
        except Rejected:
            is_whole = False
        assert policy.takes(context_len, length) == is_whole


def test_a_context_without_a_token_is_never_taken() -> None:
    assert not LengthPolicy(10).takes(0, 1)


@given(st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=3), st.none() | st.integers(0, 9))))
def test_each_continuation_gets_its_own_end(texts: list[tuple[list[int], int | None]]) -> None:
    offsets = np.cumsum([0, *(len(ids) for ids, _ in texts)])
    batch = EncodedBatch(ids_of(*(id_ for ids, _ in texts for id_ in ids)), offsets)
    closed = close_continuations(batch, [end for _, end in texts])
    expected = [[*ids, *([] if end is None else [end])] for ids, end in texts]
    assert [ids.tolist() for ids in closed] == expected
    assert all(ids.dtype == np.int32 for ids in closed)
