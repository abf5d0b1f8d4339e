"""The table of bytes gives the text that the backend gives, or there is no table."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders

from pipeline.tokens import ids as token_ids
from pipeline.tokens.ids import ByteTable, EncodedBatch, join_lists, make_byte_table
from tests.conftest import ROOT, require_shared

FAMILIES = ("bundled", "smollm2", "qwen3.5", "llama-3.1")


@lru_cache
def load(name: str) -> tuple[Tokenizer, ByteTable]:
    if name == "bundled":
        folder = ROOT / "configs" / "tokenizer"
    else:
        folder = require_shared(f"assets/tokenizers/{name}")
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if name == "bundled":
        # Marks whose letters stand for other bytes, or for none.
        marks = ("<|é|>", "ž ẑ", "two words", "你好", "\n")
        backend.add_tokens([AddedToken(mark, normalized=False) for mark in marks])
    table = make_byte_table(backend)
    assert table is not None
    return backend, table


@pytest.mark.parametrize("name", FAMILIES)
def test_any_ids_decode_as_the_backend_decodes_them(name: str) -> None:
    backend, table = load(name)
    size = backend.get_vocab_size(with_added_tokens=True)
    added = list(backend.get_added_tokens_decoder())
    single_bytes = [id_ for id_ in range(size) if len(backend.id_to_token(id_) or "") == 1]
    ids = st.integers(0, size - 1) | st.sampled_from(added) | st.sampled_from(single_bytes)

    @given(st.lists(st.lists(ids, max_size=30), max_size=5))
    @settings(max_examples=300)
    def check(rows: list[list[int]]) -> None:
        expected = backend.decode_batch(rows, skip_special_tokens=False)
        assert table.decode(join_lists(rows)) == expected

    check()


def test_bytes_that_are_no_text_are_replaced_as_the_backend_does() -> None:
    backend, table = load("bundled")
    ids = {len_one: backend.token_to_id(len_one) for len_one in map(chr, range(0x21, 0x144))}
    letters = token_ids.number_letters()
    id_of_byte = {
        int(letters[ord(char)]): id_
        for char, id_ in ids.items()
        if id_ is not None and letters[ord(char)] >= 0
    }
    assert len(id_of_byte) == 256
    cases = [
        *(b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"\xe4\xbd"),
        *(
            b"\xff\xfe",
            b"a\xf0\x9f\x98\x80b",
            b"\xe2\x28\xa1",
            b"\x80" * 5,
            b"\xf8\x88\x80\x80\x80",
        ),
    ]
    rows = [[id_of_byte[byte] for byte in case] for case in cases]
    assert table.decode(join_lists(rows)) == backend.decode_batch(rows, skip_special_tokens=False)


def test_rows_of_a_part_of_a_block_decode() -> None:
    backend, table = load("bundled")
    ids = np.array(backend.encode("one two three").ids, np.int32)
    batch = EncodedBatch(ids, np.array([1, len(ids)]))
    assert table.decode(batch) == [backend.decode(ids[1:].tolist())]
    assert table.decode(EncodedBatch(ids[:0], np.array([0]))) == []
    assert table.decode(EncodedBatch(ids[:0], np.array([0, 0]))) == [""]


def test_ids_beyond_the_vocabulary_are_not_covered() -> None:
    backend, table = load("bundled")
    size = backend.get_vocab_size(with_added_tokens=True)
    assert table.covers(join_lists([[0, size - 1]]))
    assert not table.covers(join_lists([[0, size]]))
    assert table.covers(join_lists([[]]))


def test_another_decoder_has_no_table() -> None:
    backend = Tokenizer.from_file(str(ROOT / "configs" / "tokenizer" / "tokenizer.json"))
    for decoder in (decoders.Fuse(), decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])):
        backend.decoder = decoder
        assert make_byte_table(backend) is None


def test_a_table_that_decodes_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Tokenizer.from_file(str(ROOT / "configs" / "tokenizer" / "tokenizer.json"))
    shifted = token_ids.number_letters()
    shifted[ord("a")] = ord("b")
    monkeypatch.setattr(token_ids, "number_letters", lambda: shifted)
    assert make_byte_table(backend) is None
