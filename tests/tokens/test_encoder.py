"""Text to ids and back: every continuation decodes to itself after a context, or is known not to."""

from __future__ import annotations

import json
import os
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipeline.errors import UsageError
from pipeline.tokens.encoder import TextEncoder
from pipeline.tokens.ids import EncodedBatch
from tests.conftest import ROOT, name_tokenizers, require_shared

BUNDLED = ROOT / "configs" / "tokenizer"
ASSETS = (
    "deepseek-v3",
    "gemma-3",
    "gpt-oss",
    "gpt2",
    "llama-2",
    "llama-3.1",
    "mistral-nemo",
    "mistral-v0.1",
    "mistral-v0.3",
    "phi-3",
    "qwen2.5",
    "qwen3",
    "qwen3.5",
    "smollm2",
)
# How each keeps its first-position rule away from a continuation.
AFTER_TOKEN = {"llama-2", "mistral-v0.3"}
AFTER_NEWLINE = {"mistral-v0.1", "phi-3"}
SENTENCEPIECE = AFTER_TOKEN | AFTER_NEWLINE | {"gemma-3"}
# Bytes that are in no token of SmolLM2: some control characters, and what lies beyond U+3FFFF.
SMOLLM2_LACKS = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}
NFC = {"qwen2.5", "qwen3", "qwen3.5"}

# Text that trips tokenizers: white space at the edges, composed and decomposed letters, marks.
PIECES = st.sampled_from(
    [
        *(" ", "  ", "\n", "\n\n", "\t", "\r\n", "\r", "\u00a0", "\u200b", "\ufeff", "\x00"),
        *(
            "x",
            "é",
            "e\u0301",
            "да",
            "你",
            "🙂",
            "👨\u200d👩\u200d👧",
            "नमस्ते",
            "한",
            "ﬁ",
            "Å",
            "\u2028",
        ),
        *(
            "<s>",
            "</s>",
            "<unk>",
            "<|im_end|>",
            "<think>",
            "</think>",
            "[INST]",
            "<|end|>",
            "<eos>",
        ),
        *("<0x0A>", "'s", "don't", "123456", "   x", "<tool_call>", "<|eot_id|>", "\U000f0000"),
        *("\x1b[31m", ">\u0338", "\ufffd"),
    ]
)
TEXTS = st.lists(
    PIECES | st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=8
).map("".join)


@lru_cache
def bundled() -> TextEncoder:
    return TextEncoder.from_path(str(BUNDLED))


@pytest.fixture
def encoder() -> TextEncoder:
    return bundled()


@pytest.fixture(scope="module", params=name_tokenizers(ASSETS))
def family(request: pytest.FixtureRequest) -> TextEncoder:
    """The real tokenizers, one after the other; each is loaded once."""
    folder = require_shared(f"assets/tokenizers/{request.param}")
    return TextEncoder.from_path(str(folder))


def name_of(family: TextEncoder) -> str:
    assert family.folder is not None
    return family.folder.name


def own_encoder(tokenizer: Tokenizer, **special: Any) -> TextEncoder:
    """Return the encoder of a small tokenizer made in a test."""
    return TextEncoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special), None)


def sentencepiece(prepend: bool) -> TextEncoder:
    """Return a small tokenizer like Llama's: a prefix space, and bytes where a piece is missing.

    With ``prepend`` the space comes after every added token (Mistral v0.1), else at the beginning
    of the text alone (Llama 2 with ``legacy: false``).
    """
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "x", "y", "▁x", "▁▁", "L", "e", "f", "t", "."]
    model = models.BPE(
        {piece: place for place, piece in enumerate(pieces)},
        [("▁", "x"), ("▁", "▁")],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    if prepend:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = [tokenizers.AddedToken(text, special=True) for text in ("<unk>", "<s>", "</s>")]
    tokenizer.add_special_tokens(special)
    return own_encoder(tokenizer, bos_token="<s>", eos_token="</s>")


OWN = {
    "prefix space first": lambda: sentencepiece(False),
    "prefix space always": lambda: sentencepiece(True),
}


# ---- the proof


def prove(encoder: TextEncoder, text: str, context: str) -> None:
    """Check one continuation: it decodes to itself or to what the normaliser makes of it."""
    batch = encoder.encode_continuations([text])
    (decoded,) = encoder.decode_after_context(batch)
    assert decoded in (text, encoder.normalise(text))
    before = encoder.decode(encoder.encode([context])[0])
    after = encoder.decode([*encoder.encode([context])[0], *batch[0]])
    assert after == before + decoded


@given(TEXTS)
@settings(max_examples=300)
def test_a_continuation_decodes_to_its_text_after_a_context(text: str) -> None:
    encoder = bundled()
    prove(encoder, text, "<|im_start|>assistant\n")
    assert encoder.decode_after_context(encoder.encode_continuations([text])) == [text]


@pytest.mark.parametrize("kind", OWN)
@given(text=TEXTS)
@settings(max_examples=150)
def test_a_prefix_space_does_not_touch_a_continuation(kind: str, text: str) -> None:
    encoder = _own(kind)
    # U+2581 is how SentencePiece writes a space: it cannot be told from one.
    text = text.replace("▁", "_")
    assert encoder.decode_after_context(encoder.encode_continuations([text])) == [text]
    prove(encoder, text, "<s>x\n")


@lru_cache
def _own(kind: str) -> TextEncoder:
    return OWN[kind]()


@pytest.mark.parametrize("kind", OWN)
def test_the_ids_after_a_context_are_those_without_the_prefix_space(kind: str) -> None:
    encoder = _own(kind)
    x, space_x = encoder._backend.token_to_id("x"), encoder._backend.token_to_id("▁x")
    batch = encoder.encode_continuations(["x", " x", "x</s>x"])
    assert encoder.encode(["x"])[0].tolist() == [space_x]
    assert batch[0].tolist() == [x]
    assert batch[1].tolist() == [space_x]
    assert batch[2].tolist() == [x, 2, x]


# ---- every family


def test_the_proof_holds_for_every_family(family: TextEncoder) -> None:
    name = name_of(family)

    @given(TEXTS, st.sampled_from(["<s>Hello there\n", "x", "\n", "<|im_start|>assistant\n"]))
    @settings(max_examples=120)
    def check(text: str, context: str) -> None:
        if name in SENTENCEPIECE:
            text = text.replace("▁", "_")
        if name == "smollm2":
            text = "".join(each for each in text if not SMOLLM2_LACKS & set(each.encode()))
        prove(family, text, context)
        (decoded,) = family.decode_after_context(family.encode_continuations([text]))
        assert name in NFC or decoded == text

    check()


def test_byte_level_families_need_no_anchor(family: TextEncoder) -> None:
    texts = ["x", " x", "\n\nx", "Left.", "你好 ", "\t", "1234", "<|im_end|>"]
    plain, after = family.encode(texts), family.encode_continuations(texts)
    same = [plain[place].tolist() == after[place].tolist() for place in range(len(texts))]
    assert all(same) == (name_of(family) not in AFTER_TOKEN | AFTER_NEWLINE)


def test_ids_are_those_that_transformers_gives(family: TextEncoder) -> None:
    texts = [
        "Hello there",
        "  two spaces",
        "<s>x</s>",
        "da\n\nда 你好 🙂",
        "<|im_start|>user\n",
        "1234567",
    ]
    for add_special_tokens in (False, True):
        batch = family.encode(texts, add_special_tokens=add_special_tokens)
        expected = family.tokenizer(texts, add_special_tokens=add_special_tokens)["input_ids"]
        assert [batch[place].tolist() for place in range(len(texts))] == expected


def test_every_id_is_below_the_vocabulary_size(family: TextEncoder) -> None:
    assert max(family._backend.get_vocab(True).values()) < family.vocabulary_size


def test_a_normaliser_that_changes_a_text_is_known(family: TextEncoder) -> None:
    (decoded,) = family.decode_after_context(family.encode_continuations(["e\u0301"]))
    if name_of(family) in NFC:
        assert decoded == "é" == family.normalise("e\u0301")
    else:
        assert decoded == "e\u0301"


def test_the_mark_for_a_space_cannot_be_had_in_sentencepiece(family: TextEncoder) -> None:
    # The decoded text differs and no normaliser explains it, so such a row is refused.
    (decoded,) = family.decode_after_context(family.encode_continuations(["a▁b"]))
    if name_of(family) in SENTENCEPIECE:
        assert decoded == "a b" != family.normalise("a▁b")
    else:
        assert decoded == "a▁b"


def test_a_character_that_has_no_tokens_does_not_decode_to_itself(family: TextEncoder) -> None:
    # The job refuses such a continuation; most families have a token for every byte.
    text = "\U00040000"
    (decoded,) = family.decode_after_context(family.encode_continuations([text]))
    assert (decoded == text) == (name_of(family) != "smollm2")


def test_a_bos_is_known_in_every_family(family: TextEncoder) -> None:
    adding = {
        "gemma-3",
        "llama-2",
        "llama-3.1",
        "mistral-nemo",
        "mistral-v0.1",
        "mistral-v0.3",
        "phi-3",
    }
    assert family.adds_bos == (name_of(family) in adding)
    assert (family.bos_id is None) == (name_of(family) in NFC)


# ---- normalising


def test_normalising_leaves_added_tokens_whole() -> None:
    tokenizer = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    tokenizer.normalizer = normalizers.NFC()
    encoder = own_encoder(tokenizer, eos_token="<|im_end|>")
    # Normalised as one text, ">" and U+0338 would become one letter and break the mark.
    text = "</think>\u0338e\u0301"
    assert encoder.normalise(text) == "</think>\u0338é"
    assert encoder.decode_after_context(encoder.encode_continuations([text])) == ["</think>\u0338é"]


# ---- batches


def test_a_batch_gives_each_text_its_own_ids(encoder: TextEncoder) -> None:
    texts = ["Hello", "", "<|im_end|>", "da 你好"]
    batch = encoder.encode(texts)
    assert len(batch) == 4
    assert [batch[place].tolist() for place in range(4)] == [
        encoder.encode([text])[0].tolist() for text in texts
    ]
    assert batch[1].tolist() == []
    assert batch[2].tolist() == [encoder.token_id("<|im_end|>")]
    assert (batch.flat.dtype, batch.offsets.dtype) == (np.int32, np.int64)
    assert batch.offsets.tolist()[-1] == len(batch.flat)


@pytest.mark.parametrize("name", ["bundled", "prefix space first", "prefix space always"])
def test_no_texts_make_an_empty_batch(name: str) -> None:
    encoder = bundled() if name == "bundled" else _own(name)
    for batch in (encoder.encode([]), encoder.encode_continuations([])):
        assert isinstance(batch, EncodedBatch)
        assert len(batch) == 0
    assert encoder.decode_after_context(encoder.encode_continuations([])) == []


@given(st.lists(TEXTS, max_size=6))
def test_a_text_has_the_same_ids_alone_and_in_any_batch(texts: list[str]) -> None:
    for encoder in (bundled(), *map(_own, OWN)):
        batch = encoder.encode_continuations(texts)
        alone = [encoder.encode_continuations([text])[0].tolist() for text in texts]
        assert [batch[place].tolist() for place in range(len(texts))] == alone


# ---- what the tokenizer is


def test_padding_and_truncation_of_the_tokenizer_do_not_reach_the_ids(encoder: TextEncoder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    tokenizer.backend_tokenizer.enable_truncation(3)
    set_up = TextEncoder(tokenizer, None)
    assert set_up.encode(["a longer text than three tokens"])[0].tolist() == (
        encoder.encode(["a longer text than three tokens"])[0].tolist()
    )
    assert set_up.state_sha256 == encoder.state_sha256
    tokenizer.backend_tokenizer.enable_padding(length=70)
    assert len(set_up.encode(["x"])[0]) == 1


def test_a_tokenizer_that_is_not_shared_is_not_copied_unless_somebody_sets_it_up() -> None:
    own = TextEncoder.from_path(str(BUNDLED))
    assert own._backend is own.tokenizer.backend_tokenizer
    text = "a longer text than three tokens"
    expected = own.encode([text])[0].tolist()
    own.tokenizer.backend_tokenizer.enable_padding(length=50)
    own.tokenizer.backend_tokenizer.enable_truncation(3)
    assert own.encode([text])[0].tolist() == expected
    # What the user asked of the tokenizer stays.
    assert own.tokenizer.backend_tokenizer.truncation is not None


def test_contexts_have_the_ids_that_encoding_gives(encoder: TextEncoder) -> None:
    turn = "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\nHello " + "again " * 300
    texts = [turn * times + "<|im_start|>assistant\n" for times in (1, 2, 3, 2)]
    alone = [encoder.encode([text])[0].tolist() for text in texts]
    assert [ids.tolist() for ids in encoder.encode(texts)] == alone


def test_what_encodes_is_said_for_the_seal() -> None:
    checks = TextEncoder.from_path(str(BUNDLED), encoder="tokenizers").encoder_checks
    assert checks == {
        "name": "tokenizers",
        "version": tokenizers.__version__,
        "reason": "asked for",
    }


def test_one_thread_is_asked_of_every_encoder(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS"):
        monkeypatch.setenv(name, "unset")
    encoder.use_one_thread()
    assert (os.environ["TOKENIZERS_PARALLELISM"], os.environ["RAYON_NUM_THREADS"]) == ("false", "1")


def test_a_tokenizer_that_splits_special_tokens_reads_them_as_text(tmp_path: Path) -> None:
    folder = shutil.copytree(BUNDLED, tmp_path / "t")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["split_special_tokens"] = True
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    split = TextEncoder.from_path(str(folder))
    expected = split.tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]
    assert len(expected) > 1
    assert split.encode(["<|im_end|>"])[0].tolist() == expected


def test_added_and_special_tokens_are_told_apart(encoder: TextEncoder) -> None:
    assert encoder.special_tokens == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert set(encoder.added_tokens) - encoder.special_tokens == {
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<tool_response>",
        "</tool_response>",
    }
    assert encoder.token_id("<think>") == encoder.added_tokens["<think>"]
    assert encoder.token_id("think") is None
    assert encoder.token_id("") is None


def test_special_tokens_are_kept_when_decoding(encoder: TextEncoder) -> None:
    text = "<|im_start|>user\nHi , there .<|im_end|>\n"
    assert encoder.decode(encoder.encode([text])[0]) == text
    assert encoder.decode([]) == ""


def test_a_bos_is_known_by_name_and_by_what_encoding_adds(encoder: TextEncoder) -> None:
    assert encoder.bos_id is None
    assert not encoder.adds_bos
    own = _own("prefix space first")
    assert own.bos_id == 1
    assert not own.adds_bos


def test_the_state_changes_with_any_token(encoder: TextEncoder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    assert TextEncoder(tokenizer, None).state_sha256 == encoder.state_sha256
    tokenizer.add_tokens(["<new>"])
    assert TextEncoder(tokenizer, None).state_sha256 != encoder.state_sha256


# ---- errors


def test_a_folder_that_transformers_cannot_load_is_refused_with_its_words(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    with pytest.raises(UsageError, match="expected a folder that AutoTokenizer of transformers"):
        TextEncoder.from_path(str(tmp_path))


def test_a_folder_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="no such folder"):
        TextEncoder.from_path("/no/such/folder")


def test_remote_code_does_not_run_unless_asked(tmp_path: Path) -> None:
    folder = shutil.copytree(BUNDLED, tmp_path / "t")
    marker = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="trust_remote_code"):
        TextEncoder.from_path(str(folder))
    assert not marker.exists()


def test_a_tokenizer_without_fast_backend_is_refused() -> None:
    class Slow:
        """Stands for a tokenizer in Python alone."""

    with pytest.raises(UsageError, match="Slow has no fast backend"):
        TextEncoder(Slow(), None)  # pyright: ignore[reportArgumentType]


def test_a_tokenizer_that_cannot_give_a_continuation_back_is_refused() -> None:
    # Whole words only, lower case: "Left." can never be told from "left .".
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "x": 1}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = own_encoder(tokenizer)
    with pytest.raises(UsageError, match="no way found to encode a continuation"):
        encoder.encode_continuations(["x"])
