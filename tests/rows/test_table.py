"""Rows as an Arrow table, and the digest that sums over their canonical bytes."""

from __future__ import annotations

import hashlib
import random
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rows import table as row_table
from pipeline.rows.table import (
    DIGEST_MODULUS,
    BoundedRow,
    Provenance,
    build_table,
    hash_context,
    sum_digests,
)
from pipeline.types import NUMERIC_COLUMNS, ROW_SCHEMA


def provenance_of(id_: str = "a", **values: Any) -> Provenance:
    defaults: dict[str, Any] = {
        "conversation": id_,
        "source": "a.jsonl:1",
        "decision_idx": 2,
        "preference": "",
        "reason": "why",
        "memories": ("m",),
        "weight": 1.0,
    }
    return Provenance(id=id_, **{**defaults, **values})


def row_of(*ids: int, context_len: int = 1, **values: Any) -> BoundedRow:
    defaults: dict[str, Any] = {"dropped_tokens": 0, "dropped_messages": 0, "flags": ()}
    return BoundedRow(np.array(ids, np.int32), context_len, **{**defaults, **values})


def table_of(*rows: BoundedRow) -> pa.Table:
    return build_table(rows, [provenance_of(str(place)) for place in range(len(rows))])


def digest_rows(table: pa.Table, split: str) -> list[bytes]:
    """Return the digests of rows that are all of one split."""
    return row_table.digest_rows(table, [split] * table.num_rows)


ROWS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=12),
        st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=8,
)


# ---- table


@given(ROWS)
def test_labels_come_from_lengths_whatever_the_ids_are(
    pairs: list[tuple[list[int], list[int]]],
) -> None:
    table = table_of(*(row_of(*a, *b, context_len=len(a)) for a, b in pairs))
    assert table.schema == ROW_SCHEMA
    table.validate(full=True)
    for (context, continuation), row in zip(pairs, table.to_pylist(), strict=True):
        assert row["input_ids"] == context + continuation
        assert row["labels"] == [-100] * len(context) + continuation
        assert row["attention_mask"] == [1] * (len(context) + len(continuation))
        assert row["context_len"] == len(context)
        assert row["total_len"] == len(context) + len(continuation)
        assert row["context_hash"] == hash_context(np.array(context, np.int32))


def test_a_row_says_where_it_came_from() -> None:
    row = row_of(5, 6, 7, context_len=2, dropped_tokens=4, dropped_messages=1, flags=("truncated",))
    origin = provenance_of(
        "x", conversation="c", source="f.jsonl:9", memories=("p", "q"), weight=0.25
    )
    (saved,) = build_table([row], [origin]).to_pylist()
    expected = {
        "id": "x",
        "conversation": "c",
        "source": "f.jsonl:9",
        "decision_idx": 2,
        "preference": "",
        "reason": "why",
        "memories": ["p", "q"],
        "weight": 0.25,
        "dropped_tokens": 4,
        "dropped_messages": 1,
        "flags": ["truncated"],
    }
    assert {name: saved[name] for name in expected} == expected


def test_no_rows_make_an_empty_table_of_the_schema() -> None:
    table = build_table([], [])
    assert table.num_rows == 0
    assert table.schema == ROW_SCHEMA
    assert digest_rows(table, "train") == []


def test_a_row_without_tokens_does_not_shift_its_neighbours() -> None:
    # An entry that carries a reject is such a row.
    empty = row_of(context_len=0)
    table = table_of(row_of(1, 2), empty, row_of(3, 4, context_len=1))
    assert table.column("input_ids").to_pylist() == [[1, 2], [], [3, 4]]
    assert table.column("labels").to_pylist() == [[-100, 2], [], [-100, 4]]


def test_text_is_kept_byte_for_byte() -> None:
    text = "e\u0301 \r\n\t\u2028 null 007 👩‍👧 \x00"
    origin = provenance_of(text, reason=text, memories=(text, ""))
    (saved,) = build_table([row_of(1, 2)], [origin]).to_pylist()
    assert (saved["id"], saved["reason"], saved["memories"]) == (text, text, [text, ""])


# ---- digest


def canonical_digest(row: dict[str, Any], split: str) -> bytes:
    """The canonical bytes once more, value by value, as `digest_rows` describes them."""
    data = b""
    for name in NUMERIC_COLUMNS:
        value = row[name]
        if isinstance(value, list):
            kind = "b" if name == "attention_mask" else "i"
            data += struct.pack("<q", len(value)) + struct.pack(f"<{len(value)}{kind}", *value)
        else:
            data += struct.pack("<f" if name == "weight" else "<q", value)
    for text in (row.get("id", ""), split):
        data += struct.pack("<q", len(text.encode())) + text.encode()
    return hashlib.sha256(data).digest()


@given(ROWS)
def test_the_digest_is_over_the_bytes_that_it_describes(
    pairs: list[tuple[list[int], list[int]]],
) -> None:
    table = table_of(*(row_of(*a, *b, context_len=len(a)) for a, b in pairs))
    assert digest_rows(table, "train") == [
        canonical_digest(row, "train") for row in table.to_pylist()
    ]


def test_the_digest_of_a_row_never_changes_between_releases() -> None:
    row = row_of(1, 2, 70000, context_len=2, dropped_tokens=3)
    (digest,) = digest_rows(build_table([row], [provenance_of("é", weight=0.1)]), "train")
    assert digest.hex() == ("22a7c5266b12622d2a0a19732a6e3e1f18e5ff473cef54fd9a75a93961a17f14")


def test_the_sum_is_free_of_order() -> None:
    digests = digest_rows(table_of(*(row_of(n, n + 1) for n in range(20))), "train")
    shuffled = random.Random(7).sample(digests, len(digests))
    assert shuffled != digests
    assert sum_digests(shuffled) == sum_digests(digests)


def test_the_sum_of_a_set_is_the_sum_of_its_shards() -> None:
    digests = digest_rows(table_of(*(row_of(n, n + 1) for n in range(20))), "train")
    left, right = int(sum_digests(digests[:7]), 16), int(sum_digests(digests[7:]), 16)
    assert f"{(left + right) % DIGEST_MODULUS:064x}" == sum_digests(digests)


def test_the_sum_wraps_at_2_to_the_256_and_is_zero_for_no_rows() -> None:
    assert sum_digests([b"\xff" * 32, b"\x00" * 31 + b"\x02"]) == f"{1:064x}"
    assert sum_digests([]) == "0" * 64


def test_the_same_row_twice_is_not_the_same_as_not_at_all() -> None:
    (digest,) = digest_rows(table_of(row_of(1, 2)), "train")
    assert len({sum_digests([digest] * times) for times in range(4)}) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"ids": (1, 2, 3, 5)},
        {"ids": (1, 2, 3)},
        {"ids": (1, 2, 3, 4, 0)},
        {"context_len": 1},
        {"dropped_tokens": 1},
        {"dropped_messages": 1},
        {"decision_idx": 3},
        {"weight": float(np.nextafter(np.float32(1), np.float32(2)))},
        {"id": "b"},
        {"split": "validation"},
    ],
    ids=str,
)
def test_any_change_of_the_content_changes_the_digest(change: dict[str, Any]) -> None:
    def digest_of(
        ids: tuple[int, ...] = (1, 2, 3, 4), split: str = "train", **values: Any
    ) -> bytes:
        of_row = {
            key: values.pop(key) for key in list(values) if key.startswith(("context", "dropped"))
        }
        origin = provenance_of(values.pop("id", "a"), **values)
        row = row_of(*ids, **{"context_len": 2, **of_row})
        return digest_rows(build_table([row], [origin]), split)[0]

    assert digest_of(**change) != digest_of()


@pytest.mark.parametrize(
    "change",
    [
        {"source": "b.jsonl:7"},
        {"reason": "other"},
        {"memories": ()},
        {"conversation": "c"},
        {"preference": "chosen"},
    ],
    ids=str,
)
def test_words_about_a_row_are_not_its_content(change: dict[str, Any]) -> None:
    tables = [
        build_table([row_of(1, 2)], [provenance_of("a", **values)]) for values in ({}, change)
    ]
    assert digest_rows(tables[0], "train") == digest_rows(tables[1], "train")


def test_each_row_is_of_its_own_split() -> None:
    table = table_of(row_of(1, 2), row_of(1, 2))
    left, right = digest_rows(table, "train"), digest_rows(table, "validation")
    assert row_table.digest_rows(table, ["train", "validation"]) == [left[0], right[1]]


def test_ids_cannot_move_between_neighbouring_lengths() -> None:
    # Without lengths in the canonical bytes, these would be one stream of numbers.
    table = table_of(row_of(1, 2, 3, context_len=1), row_of(1, 2, 3, context_len=2))
    assert len(set(digest_rows(table, "train"))) == 2
    left, right = (
        digest_rows(build_table([row_of(1, 2)], [provenance_of(id_)]), split)[0]
        for id_, split in (("atrain", ""), ("a", "train"))
    )
    assert left != right


def test_sliced_and_chunked_tables_have_the_digests_of_the_whole() -> None:
    table = table_of(*(row_of(n, n + 1, n + 2) for n in range(12)))
    whole = digest_rows(table, "train")
    assert digest_rows(table.slice(5, 4), "train") == whole[5:9]
    chunked = pa.concat_tables([table.slice(0, 3), table.slice(3, 0), table.slice(3)])
    assert chunked.column("input_ids").num_chunks == 3
    assert digest_rows(chunked, "train") == whole


def test_the_columns_for_training_have_a_digest_of_their_own() -> None:
    table = table_of(row_of(1, 2), row_of(3, 4))
    without_ids = digest_rows(table.select(NUMERIC_COLUMNS), "train")
    assert without_ids == [
        canonical_digest(row, "train") for row in table.select(NUMERIC_COLUMNS).to_pylist()
    ]
    assert set(without_ids).isdisjoint(digest_rows(table, "train"))
