"""Texts cut into pieces have the ids of whole texts, or are not cut."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from pipeline.tokens import pieces as text_pieces
from pipeline.tokens.backends import StockEncoder
from pipeline.tokens.ids import EncodedBatch
from pipeline.tokens.pieces import PieceEncoder, find_cut_tokens
from tests.conftest import ROOT

BUNDLED = ROOT / "configs" / "tokenizer" / "tokenizer.json"
START, END = "<|im_start|>", "<|im_end|>"


def load() -> Tokenizer:
    return Tokenizer.from_file(str(BUNDLED))


class Counter:
    """Encodes, and keeps what it was asked to encode."""

    def __init__(self, backend: Tokenizer) -> None:
        self._stock = StockEncoder(backend)
        self.texts: list[str] = []

    def __call__(self, texts: Sequence[str]) -> EncodedBatch:
        self.texts += texts
        return self._stock.encode(texts, add_special_tokens=False)

    @property
    def characters(self) -> int:
        return sum(map(len, self.texts))


def rows_of(batch: EncodedBatch) -> list[list[int]]:
    return [batch[place].tolist() for place in range(len(batch))]


def conversation(turns: int, name: str = "") -> list[str]:
    """Return the prompts at each decision point of a conversation that grows by a turn."""
    parts = [f"{START}system\nYou are {name} of some use. " + "Rule, and rule. " * 150 + END + "\n"]
    prompts: list[str] = []
    for turn in range(turns):
        parts.append(f"{START}user\nQuestion {turn} of {name}? " + "Why so? " * 60 + END + "\n")
        prompts.append("".join(parts) + f"{START}assistant\n")
        parts.append(f"{START}assistant\nAnswer {turn}. " + "For this. " * 60 + END + "\n")
    return prompts


# ---- the same ids


@lru_cache
def cutting() -> tuple[Tokenizer, list[str]]:
    backend = load()
    # Neighbours that strip, that are normalised, and that hold parts of others.
    backend.add_tokens([AddedToken("<|pad|>", rstrip=True), AddedToken("<|l|>", lstrip=True)])
    backend.add_tokens(
        [AddedToken("im_start", normalized=True), AddedToken("<|im", normalized=False)]
    )
    backend.normalizer = normalizers.NFC()
    return backend, [END]


PIECES = st.sampled_from(
    [
        *(
            START,
            END,
            "<|endoftext|>",
            "<|pad|>",
            "<|l|>",
            "<|im",
            "im_start",
            "<think>",
            "</think>",
        ),
        *("<|im_", "_end|>", "<|", "|>", "<", ">", "im_end", "<|im_end", "|im_end|>", "<|im_start"),
        *(
            " ",
            "  ",
            "\n",
            "\n\n",
            "\t",
            "x",
            "e\u0301",
            "\u0301",
            "é",
            "你",
            "🙂",
            "12",
            "'s",
            "assistant",
        ),
    ]
)
TEXTS = st.lists(st.lists(PIECES, max_size=14).map("".join), min_size=1, max_size=4)


@given(TEXTS, TEXTS)
@settings(max_examples=400)
def test_pieces_give_the_ids_of_whole_texts(first: list[str], second: list[str]) -> None:
    backend, cut_tokens = cutting()
    with pytest.MonkeyPatch.context() as patch:
        # Every text is cut, however short and alone.
        patch.setattr(text_pieces, "SHORTEST", 0)
        patch.setattr(text_pieces, "BEGINNING", 0)
        encode = Counter(backend)
        pieces = PieceEncoder(cut_tokens, encode)
        for texts in ([""], first, second, first):
            assert rows_of(pieces.encode(texts)) == rows_of(encode(texts))


@given(
    st.lists(st.tuples(st.integers(0, 60), st.lists(PIECES, max_size=14).map("".join)), max_size=6),
    st.sampled_from([0, 1_000_000]),
)
@settings(max_examples=400)
def test_texts_that_leave_each_other_anywhere_have_the_ids_of_whole_texts(
    steps: list[tuple[int, str]], room: int
) -> None:
    backend, cut_tokens = cutting()
    texts = [""]
    for kept, further in steps:
        texts.append(texts[-1][:kept] + further)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_pieces, "SHORTEST", 2)
        patch.setattr(text_pieces, "BEGINNING", 0)
        encode = Counter(backend)
        pieces = PieceEncoder(cut_tokens, encode, room)
        for batch in (texts, texts[::-1]):
            assert rows_of(pieces.encode(batch)) == rows_of(encode(batch))


@pytest.mark.parametrize("size", [1, 3, 100])
def test_the_points_of_conversations_have_the_ids_of_whole_prompts(size: int) -> None:
    encode = Counter(load())
    pieces = PieceEncoder([START, END], encode)
    prompts = [*conversation(6, "A"), "short", *conversation(4, "B"), *conversation(6, "A")]
    rows = [
        row
        for start in range(0, len(prompts), size)
        for row in rows_of(pieces.encode(prompts[start : start + size]))
    ]
    assert rows == rows_of(encode(prompts))


def test_a_prompt_that_goes_on_where_another_ended_is_not_taken_for_it() -> None:
    # The generation prompt of the first is the beginning of a turn of the second.
    encode = Counter(load())
    pieces = PieceEncoder([START], encode)
    (first,) = conversation(1)
    texts = [first, first + "\n\nAnswer" + END, first + "ship" + END, first]
    assert rows_of(pieces.encode(texts)) == rows_of(encode(texts))


def test_no_texts_make_an_empty_batch() -> None:
    assert rows_of(PieceEncoder([START], Counter(load())).encode([])) == []


# ---- the work


def test_the_cost_grows_with_the_conversation_and_not_with_its_decision_points() -> None:
    encode = Counter(load())
    pieces = PieceEncoder([START], encode)
    prompts = conversation(40)
    pieces.encode(prompts)
    assert encode.characters < 1.2 * len(prompts[-1])
    # The next batch knows the conversation.
    again = encode.characters
    pieces.encode(prompts)
    assert encode.characters == again


def test_a_batch_shares_its_beginnings_where_no_piece_is_kept() -> None:
    encode = Counter(load())
    prompts = conversation(40)
    PieceEncoder([START], encode, room=0).encode(prompts)
    assert encode.characters < 1.2 * len(prompts[-1])


def test_texts_that_share_nothing_are_encoded_whole_in_one_call() -> None:
    encode = Counter(load())
    pieces = PieceEncoder([START], encode)
    texts = [f"{number} " + conversation(2)[1] for number in range(5)]
    pieces.encode(texts)
    assert encode.texts == texts


def test_short_texts_are_encoded_whole() -> None:
    encode = Counter(load())
    pieces = PieceEncoder([START], encode)
    texts = [f"{START}user\nHi{END}\n{START}assistant\n"] * 3
    pieces.encode(texts)
    assert encode.texts == texts


def test_a_conversation_that_goes_on_in_the_next_batch_is_known_there() -> None:
    encode = Counter(load())
    pieces = PieceEncoder([START], encode)
    prompts = conversation(10)
    for prompt in prompts:
        pieces.encode([prompt])
    # The first is encoded whole, the second in pieces, and then only what is new.
    assert encode.characters < len(prompts[0]) + 1.2 * len(prompts[-1])


def test_the_token_that_a_template_repeats_most_is_cut_at() -> None:
    encode = Counter(load())
    pieces = PieceEncoder(["<|endoftext|>", END, START], encode)
    pieces.encode(conversation(3))
    assert all(text.startswith(START) and text.count(START) == 1 for text in encode.texts)


def test_prompts_without_control_tokens_are_soon_encoded_whole() -> None:
    encode = Counter(load())
    pieces = PieceEncoder([START], encode)
    texts = [f"{'plain text ' * 300} {number}" for number in range(100)]
    assert rows_of(pieces.encode(texts)) == rows_of(Counter(load())(texts))
    encode.texts.clear()
    pieces.encode(texts)
    assert encode.texts == texts


def test_what_is_kept_is_bounded() -> None:
    room = 20_000
    encode = Counter(load())
    pieces = PieceEncoder([START], encode, room)
    for number in range(10):
        prompts = conversation(5, f"model {number}")
        assert rows_of(pieces.encode(prompts)) == rows_of(Counter(load())(prompts))
        known = pieces._known
        kept = {**known._recent, **known._older}
        assert sum(len(piece) + ids.nbytes for piece, ids in kept.items()) < room + 8_000
    before = encode.characters
    pieces.encode(conversation(5, "model 0"))
    assert encode.characters > before


def test_beginnings_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_pieces, "MOST_BEGINNINGS", 10)
    pieces = PieceEncoder([START], Counter(load()))
    for number in range(50):
        pieces.encode([f"{number} " + "x" * 2_000])
    assert len(pieces._beginnings) <= 11


# ---- where a text can be cut


def test_the_special_tokens_of_a_byte_level_tokenizer_can_be_cut_at() -> None:
    assert set(find_cut_tokens(load())) == {"<|endoftext|>", START, END}


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("<|x|>", special=True, lstrip=True),
        AddedToken("<|x|>", special=True, single_word=True),
        AddedToken("<|x|>", special=True, normalized=True),
        AddedToken("<|x|>", special=False, normalized=False),
        AddedToken("\n<|x|>", special=True),
    ],
    ids=["lstrip", "single word", "normalised", "not special", "starts with space"],
)
def test_a_token_that_may_take_from_before_it_is_not_cut_at(token: AddedToken) -> None:
    backend = load()
    backend.add_special_tokens([token]) if token.special else backend.add_tokens([token])
    assert token.content not in find_cut_tokens(backend)
    assert START in find_cut_tokens(backend)


def test_a_token_that_ends_as_others_begin_keeps_all_of_them_from_being_cut_at() -> None:
    backend = load()
    backend.add_special_tokens([AddedToken("<x<", special=True)])
    assert find_cut_tokens(backend) == []


def test_a_token_that_strips_after_itself_can_be_cut_at() -> None:
    backend = load()
    backend.add_special_tokens([AddedToken("<|x|>", special=True, rstrip=True)])
    assert "<|x|>" in find_cut_tokens(backend)


@pytest.mark.parametrize("other", [START + "user", "a<|im", "x" + START, "x" + START + "y", "|><"])
def test_a_token_that_another_can_cover_is_not_cut_at(other: str) -> None:
    backend = load()
    backend.add_tokens([AddedToken(other, normalized=False)])
    assert START not in find_cut_tokens(backend)


@pytest.mark.parametrize("other", ["<|im_start", "im_start", "start|>", "<|im_start|"])
def test_a_token_that_another_cannot_cover_is_cut_at(other: str) -> None:
    backend = load()
    backend.add_tokens([AddedToken(other, normalized=False)])
    assert START in find_cut_tokens(backend)
    text = f"a{START}b{other}{START}c"
    whole = backend.encode(text, add_special_tokens=False).ids
    cut = [text[:1], f"{START}b{other}", f"{START}c"]
    parts = [backend.encode(piece, add_special_tokens=False).ids for piece in cut]
    assert whole == [id_ for part in parts for id_ in part]


def prefix_space(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def metaspace(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Punctuation()]
    )


def prepend(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("▁")])


def dropout(backend: Tokenizer) -> None:
    backend.model.dropout = 0.1


def split_special(backend: Tokenizer) -> None:
    backend.encode_special_tokens = True


def another_model(backend: Tokenizer) -> None:
    backend.model = models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")


@pytest.mark.parametrize(
    "change", [prefix_space, metaspace, prepend, dropout, split_special, another_model]
)
def test_a_backend_that_may_look_across_a_cut_is_not_cut_at_all(change: Any) -> None:
    backend = load()
    change(backend)
    assert find_cut_tokens(backend) == []


def test_without_a_token_to_cut_at_texts_are_encoded_whole() -> None:
    encode = Counter(load())
    prompts = conversation(3)
    assert rows_of(PieceEncoder([], encode).encode(prompts)) == rows_of(Counter(load())(prompts))
    assert encode.texts == prompts
