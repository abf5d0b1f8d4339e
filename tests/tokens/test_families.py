"""The real tokenizers: both encoders give the same ids, pieces those of whole texts."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tokens import pieces as text_pieces
from pipeline.tokens.backends import StockEncoder
from pipeline.tokens.encoder import TOKENS_FOR_TABLE, TextEncoder
from pipeline.tokens.ids import EncodedBatch, join_lists
from tests.conftest import ROOT, name_tokenizers, require_shared
from tests.tokens.test_encoder import ASSETS, TEXTS

pytestmark = pytest.mark.skipif(
    find_spec("fastokens") is None, reason="fastokens is not installed: no wheel for this machine"
)

REFUSED = {"llama-2", "mistral-v0.3"}  # Metaspace pre-tokenizers
PREFIX_SPACE = {"llama-2", "mistral-v0.1", "mistral-v0.3", "phi-3"}


@pytest.fixture(scope="module", params=["bundled", *name_tokenizers(ASSETS)])
def family(request: pytest.FixtureRequest) -> tuple[str, TextEncoder, TextEncoder]:
    """A tokenizer's name, its checked encoder and `tokenizers` for it."""
    name = request.param
    folder = (
        ROOT / "configs" / "tokenizer"
        if name == "bundled"
        else require_shared(f"assets/tokenizers/{name}")
    )
    auto = TextEncoder.from_path(str(folder), encoder="auto")
    return name, auto, TextEncoder(auto.tokenizer, folder, is_shared=False)


def same(first: EncodedBatch, second: EncodedBatch) -> bool:
    return np.array_equal(first.offsets, second.offsets) and np.array_equal(first.flat, second.flat)


def marked_texts(encoder: TextEncoder) -> st.SearchStrategy[str]:
    """Return texts full of this tokenizer's control tokens, whole, in part and stripped."""
    marks = sorted(encoder.added_tokens, key=len)[-60:]
    parts = [part for mark in marks for part in (mark, mark, mark[1:], mark[:-1], mark[:3])]
    spaces = [" ", "  ", "\n", "\n\n", "x", "e\u0301", "\u0301", "你", "12"]
    return st.lists(st.sampled_from([*parts, *spaces]) | TEXTS, max_size=12).map("".join)


def test_auto_takes_fastokens_where_it_can_be_had(
    family: tuple[str, TextEncoder, TextEncoder],
) -> None:
    name, auto, _ = family
    auto.settle(["Hello there", "<|im_start|>user\nHi"])
    assert auto.encoder_name == ("tokenizers" if name in REFUSED else "fastokens")
    if name in REFUSED:
        assert "Metaspace" in auto.encoder_checks["reason"]


def test_both_encoders_give_the_same_ids(family: tuple[str, TextEncoder, TextEncoder]) -> None:
    _, auto, stock = family

    @given(st.lists(TEXTS | marked_texts(stock), min_size=1, max_size=6))
    @settings(max_examples=60)
    def check(texts: list[str]) -> None:
        assert same(auto.encode(texts), stock.encode(texts))
        assert same(auto.encode_continuations(texts), stock.encode_continuations(texts))
        whole = [encoder.encode(texts, add_special_tokens=True) for encoder in (auto, stock)]
        assert same(*whole)

    check()


def test_contexts_in_pieces_have_the_ids_of_whole_texts(
    family: tuple[str, TextEncoder, TextEncoder],
) -> None:
    name, auto, stock = family
    cut_tokens = text_pieces.find_cut_tokens(stock._backend)
    assert bool(cut_tokens) == (name not in PREFIX_SPACE)

    @given(st.lists(TEXTS | marked_texts(stock), min_size=1, max_size=4))
    @settings(max_examples=60)
    def check(texts: list[str]) -> None:
        # A text and what follows it share their beginning.
        texts = [*texts, *(before + after for before, after in pairwise(texts))]
        whole = StockEncoder(stock._backend)
        pieces = text_pieces.PieceEncoder(cut_tokens, whole.encode)
        expected = whole.encode(texts)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_pieces, "SHORTEST", 0)
            patch.setattr(text_pieces, "BEGINNING", 0)
            assert same(pieces.encode(texts), expected)
        assert same(auto.encode(texts), expected)

    check()


def test_ids_decode_as_the_backend_decodes_them(
    family: tuple[str, TextEncoder, TextEncoder],
) -> None:
    name, auto, stock = family
    assert (stock._byte_table is None) == (name in PREFIX_SPACE | {"gemma-3"})
    anchor_ids, anchor_text = stock._anchor
    ids = st.integers(0, stock.vocabulary_size - 1)
    # From here on by the table, where there is one.
    auto.decode_after_context(join_lists([[0] * (TOKENS_FOR_TABLE + 1)]))

    @given(st.lists(st.lists(ids, max_size=20), max_size=4))
    @settings(max_examples=60)
    def check(rows: list[list[int]]) -> None:
        anchored = [[*anchor_ids, *row] for row in rows]
        expected = stock._backend.decode_batch(anchored, skip_special_tokens=False)
        found = auto.decode_after_context(join_lists(rows))
        assert found == [text.removeprefix(anchor_text) for text in expected]

    check()


def test_a_byte_that_smollm2_lacks_is_left_to_tokenizers() -> None:
    folder = require_shared("assets/tokenizers/smollm2")
    encoder = TextEncoder.from_path(str(folder), encoder="fastokens")
    texts = ["one", "t\x04wo", "three", "\U00040000", "five"]
    expected = TextEncoder.from_path(str(folder)).encode(texts)
    assert same(encoder.encode(texts), expected)
    assert encoder.encoder_name == "fastokens"
