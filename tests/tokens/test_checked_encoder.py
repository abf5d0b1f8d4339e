"""fastokens is used where it gives the ids of `tokenizers`, and never where it does not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from pipeline.errors import UsageError
from pipeline.tokens import backends as fast_encoder
from pipeline.tokens import checked_encoder
from pipeline.tokens.backends import FastEncoder, StockEncoder, Unfit
from pipeline.tokens.checked_encoder import CheckedEncoder
from pipeline.tokens.ids import EncodedBatch, join_lists
from pipeline.tokens.probes import make_probes
from tests.conftest import ROOT

needs_fastokens = pytest.mark.skipif(
    find_spec("fastokens") is None, reason="fastokens is not installed: no wheel for this machine"
)
BUNDLED = ROOT / "configs" / "tokenizer" / "tokenizer.json"
TEXTS = ["Hello there", "", "<|im_start|>user\nHi<|im_end|>\n", "да 你好 🙂", "  x"]


@pytest.fixture
def backend() -> Tokenizer:
    return Tokenizer.from_file(str(BUNDLED))


def ids_of(encoder: CheckedEncoder, texts: Sequence[str], **options: Any) -> list[list[int]]:
    batch = encoder.encode(texts, **options)
    return [batch[place].tolist() for place in range(len(texts))]


def stock_ids(backend: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [backend.encode(text, add_special_tokens=False).ids for text in texts]


class WrongAbout:
    """Stands for a fastokens that gives one id too many for texts with a certain word."""

    version = "9.9"

    def __init__(self, word: str, backend: Tokenizer) -> None:
        self._word, self._backend = word, backend

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> EncodedBatch:
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        pairs = zip(encodings, texts, strict=True)
        return join_lists([one.ids + [0] * (self._word in text) for one, text in pairs])


def replace_fastokens(patch: pytest.MonkeyPatch, stand_in: Any) -> None:
    """Let each build end in ``stand_in``, or fail with it where it is an error."""

    def result(self: Any) -> Any:
        if isinstance(stand_in, Unfit):
            raise stand_in
        return stand_in

    patch.setattr(fast_encoder.FastEncoderBuild, "result", result)


# ---- agreement


@needs_fastokens
@pytest.mark.parametrize("choice", ["auto", "fastokens"])
def test_fastokens_is_used_where_it_agrees(backend: Tokenizer, choice: Any) -> None:
    encoder = CheckedEncoder(backend, choice)
    encoder.settle(TEXTS)
    assert encoder.name == "fastokens"
    assert encoder.checks == {
        "name": "fastokens",
        "version": fast_encoder.load_fastokens()[0],
        "probe_texts": len(make_probes(list(_added(backend)))),
        "job_texts": len(TEXTS),
    }
    assert ids_of(encoder, TEXTS) == stock_ids(backend, TEXTS)


def _added(backend: Tokenizer) -> Iterator[str]:
    return (token.content for token in backend.get_added_tokens_decoder().values())


def test_tokenizers_is_used_when_asked_for(backend: Tokenizer) -> None:
    encoder = CheckedEncoder(backend, "tokenizers")
    encoder.settle(TEXTS)
    assert encoder.name == "tokenizers"
    assert encoder.checks["reason"] == "asked for"
    assert ids_of(encoder, TEXTS) == stock_ids(backend, TEXTS)


@needs_fastokens
def test_the_first_texts_need_not_wait_for_the_build(
    backend: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_build = threading.Event()
    init = FastEncoder.__init__

    def wait_and_init(self: FastEncoder, *args: Any, **options: Any) -> None:
        assert may_build.wait(30)
        init(self, *args, **options)

    monkeypatch.setattr(FastEncoder, "__init__", wait_and_init)
    encoder = CheckedEncoder(backend, "auto")
    assert ids_of(encoder, TEXTS) == stock_ids(backend, TEXTS)
    may_build.set()
    assert encoder.name == "fastokens"


@needs_fastokens
def test_special_tokens_are_added_by_either_encoder(backend: Tokenizer) -> None:
    from tokenizers.processors import TemplateProcessing

    end = backend.token_to_id("<|im_end|>")
    backend.post_processor = TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", end)]
    )
    encoder = CheckedEncoder(backend, "fastokens")
    for adds in (False, True):
        expected = [backend.encode(text, add_special_tokens=adds).ids for text in TEXTS]
        assert ids_of(encoder, TEXTS, add_special_tokens=adds) == expected
    assert expected[0][-1] == end


@needs_fastokens
def test_special_tokens_that_are_read_as_text_are_so_by_either_encoder(backend: Tokenizer) -> None:
    backend.encode_special_tokens = True
    encoder = CheckedEncoder(backend, "fastokens")
    assert ids_of(encoder, TEXTS) == stock_ids(backend, TEXTS)
    assert len(ids_of(encoder, ["<|im_end|>"])[0]) > 1


# ---- differences and refusals


def test_one_other_id_for_a_probe_makes_tokenizers_encode(
    backend: Tokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replace_fastokens(monkeypatch, WrongAbout("façade", backend))
    encoder = CheckedEncoder(backend, "auto")
    assert encoder.name == "tokenizers"
    (line,) = caplog.records
    assert line.levelno == logging.WARNING
    assert "fastokens 9.9 gives other ids than tokenizers" in line.getMessage()
    assert "naïve façade" in line.getMessage()
    assert "naïve façade" in encoder.checks["reason"]
    encoder.settle(TEXTS)
    assert ids_of(encoder, ["façade"]) == stock_ids(backend, ["façade"])
    assert len(caplog.records) == 1


def test_one_other_id_for_a_text_of_the_job_makes_tokenizers_encode(
    backend: Tokenizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replace_fastokens(monkeypatch, WrongAbout("zebra", backend))
    encoder = CheckedEncoder(backend, "auto")
    assert encoder.name == "fastokens"
    encoder.settle(["a horse", "a zebra", "a zebra crossing"])
    assert encoder.name == "tokenizers"
    (line,) = caplog.records
    assert line.getMessage().count("a zebra") == 1
    assert ids_of(encoder, ["a zebra"]) == stock_ids(backend, ["a zebra"])


def test_a_difference_with_special_tokens_added_counts_too(
    backend: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AddsNothing(WrongAbout):
        def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> EncodedBatch:
            return super().encode(texts, add_special_tokens=False)

    from tokenizers.processors import TemplateProcessing

    backend.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    replace_fastokens(monkeypatch, AddsNothing("zebra", backend))
    assert CheckedEncoder(backend, "auto").name == "tokenizers"


def test_only_the_first_texts_of_a_job_are_compared(
    backend: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_fastokens(monkeypatch, WrongAbout("zebra", backend))
    encoder = CheckedEncoder(backend, "auto")
    encoder.settle(["x"] * 200 + ["zebra"])
    assert encoder.checks["job_texts"] == 200


def test_long_texts_of_a_job_are_compared_by_their_beginning(
    backend: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_fastokens(monkeypatch, WrongAbout("zebra", backend))
    long = "x " * checked_encoder._LONGEST
    encoder = CheckedEncoder(backend, "auto")
    encoder.settle([long, long + "zebra"])
    assert encoder.name == "fastokens"
    encoder.settle([long, "zebra"])
    assert encoder.name == "tokenizers"


@pytest.mark.parametrize(
    "reason", ["fastokens is not installed (no module)", "fastokens 0.3.5 refuses this tokenizer"]
)
def test_without_fastokens_tokenizers_encodes_and_one_line_says_so(
    backend: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reason: str,
) -> None:
    replace_fastokens(monkeypatch, Unfit(reason))
    encoder = CheckedEncoder(backend, "auto")
    encoder.settle(TEXTS)
    assert encoder.checks["reason"] == reason
    assert ids_of(encoder, TEXTS) == stock_ids(backend, TEXTS)
    assert [reason in record.getMessage() for record in caplog.records] == [True]


def test_fastokens_by_name_is_an_error_where_it_differs(
    backend: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_fastokens(monkeypatch, WrongAbout("zebra", backend))
    encoder = CheckedEncoder(backend, "fastokens")
    with pytest.raises(UsageError, match=r"gives other ids .* for a zebra; expected the same ids"):
        encoder.settle(["a zebra"])


def test_fastokens_by_name_is_an_error_where_it_cannot_be_had(
    backend: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_fastokens(monkeypatch, Unfit("fastokens is not installed"))
    with pytest.raises(UsageError, match="encoder: fastokens is not installed"):
        CheckedEncoder(backend, "fastokens")


# ---- a text that fastokens refuses


class RefusesNul(WrongAbout):
    """Stands for a tokenizer that lacks a byte: fastokens refuses the batch it is in."""

    def __init__(self, backend: Tokenizer) -> None:
        super().__init__("no such word", backend)
        self.batches: list[int] = []

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> EncodedBatch:
        self.batches.append(len(texts))
        if any("\0" in text for text in texts):
            raise ValueError("model error: byte 0x00 has no token in vocabulary")
        return super().encode(texts, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize("place", [0, 3, 7])
def test_a_text_that_fastokens_refuses_goes_through_tokenizers_alone(
    backend: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: int,
) -> None:
    stand_in = RefusesNul(backend)
    replace_fastokens(monkeypatch, stand_in)
    encoder = CheckedEncoder(backend, "auto")
    texts = [f"text {number}" for number in range(8)]
    texts[place] += "\0"
    assert encoder.name == "fastokens"
    by_tokenizers: list[str] = []
    encode = StockEncoder.encode

    def spy(self: StockEncoder, texts: Sequence[str], **options: Any) -> EncodedBatch:
        by_tokenizers.extend(texts)
        return encode(self, texts, **options)

    monkeypatch.setattr(StockEncoder, "encode", spy)
    assert ids_of(encoder, texts) == stock_ids(backend, texts)
    assert by_tokenizers == [texts[place]]
    assert encoder.name == "fastokens"
    assert not caplog.records


# ---- the probes


def test_every_probe_is_text_that_can_be_encoded() -> None:
    probes = make_probes(["<a>", "<b>"])
    assert all(probe.encode() is not None for probe in probes)
    assert 100_000 < sum(map(len, probes)) < 250_000


def test_probes_show_each_added_token_next_to_text_and_to_itself() -> None:
    probes = make_probes(["<a>", "<b>"])
    for token in ("<a>", "<b>"):
        for neighbours in (f"a{token}b", f" {token} ", token * 2, f"\n{token}\n"):
            assert any(neighbours in probe for probe in probes)


def test_thousands_of_added_tokens_make_no_thousands_of_probes() -> None:
    tokens = [f"<unused{number}>" for number in range(6_000)]
    probes = make_probes(tokens)
    assert len(probes) < 1_000
    assert all(any(token in probe for probe in probes[-1:]) for token in tokens)


def test_probes_reach_past_the_size_at_which_a_scanner_works_in_parallel() -> None:
    assert max(map(len, make_probes([]))) > 16_384


@needs_fastokens
def test_an_array_of_ids_is_compared_by_row_and_by_value(backend: Tokenizer) -> None:
    # The same ids in other rows are a difference: the boundary would move.
    encoder = CheckedEncoder(backend, "fastokens")
    fast = encoder._fast
    assert fast is not None
    texts = ["x", "y"]
    right = fast.encode(texts, add_special_tokens=False)
    moved = EncodedBatch(right.flat, np.array([0, 2, 2]))
    with pytest.raises(UsageError, match="gives other ids"):
        encoder._agrees(fast, texts, moved, add_special_tokens=False)
