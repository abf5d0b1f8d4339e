"""fastokens as the pipeline builds it: from the loaded backend, refused with a reason, safe to fork."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from pipeline.tokens import backends as fast_encoder
from pipeline.tokens.backends import (
    FastEncoder,
    FastEncoderBuild,
    StockEncoder,
    Unfit,
    load_fastokens,
)
from pipeline.tokens.encoder import TextEncoder
from tests.conftest import ROOT

needs_fastokens = pytest.mark.skipif(
    find_spec("fastokens") is None, reason="fastokens is not installed: no wheel for this machine"
)
FOLDER = ROOT / "configs" / "tokenizer"
TEXTS = ["Hello there", "", "<|im_start|>user\nHi<|im_end|>\n", "da 你好 🙂"]


@pytest.fixture
def backend() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def build(backend: Tokenizer) -> FastEncoder:
    return FastEncoder(backend.to_str(), splits_special_tokens=False)


# ---- ids


@needs_fastokens
def test_ids_come_in_the_buffers_of_fastokens(backend: Tokenizer) -> None:
    batch = build(backend).encode(TEXTS, add_special_tokens=False)
    assert (batch.flat.dtype, batch.offsets.dtype) == (np.int32, np.int64)
    assert not batch.flat.flags.owndata
    expected = StockEncoder(backend).encode(TEXTS, add_special_tokens=False)
    assert batch.flat.tolist() == expected.flat.tolist()
    assert batch.offsets.tolist() == expected.offsets.tolist()


@needs_fastokens
def test_no_texts_make_an_empty_batch(backend: Tokenizer) -> None:
    for encoder in (build(backend), StockEncoder(backend)):
        batch = encoder.encode([], add_special_tokens=False)
        assert (batch.flat.tolist(), batch.offsets.tolist()) == ([], [0])


@needs_fastokens
def test_a_token_added_after_loading_is_in_the_ids(backend: Tokenizer) -> None:
    # The file on disk knows nothing of it.
    backend.add_special_tokens([AddedToken("<|new|>", special=True)])
    batch = build(backend).encode(["a<|new|>"], add_special_tokens=False)
    assert batch.flat.tolist()[-1] == backend.token_to_id("<|new|>")


@needs_fastokens
def test_padding_and_truncation_do_not_reach_the_ids(backend: Tokenizer) -> None:
    expected = backend.encode("a longer text than three tokens").ids
    backend.enable_padding(length=50)
    backend.enable_truncation(3)
    for encoder in (StockEncoder(backend), build(fast_encoder.copy_backend(backend))):
        batch = encoder.encode(["a longer text than three tokens"], add_special_tokens=False)
        assert batch.flat.tolist() == expected
    assert backend.truncation is not None


@needs_fastokens
def test_a_byte_that_is_in_no_token_is_refused() -> None:
    lacking = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    lacking.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder = build(lacking)
    assert encoder.encode(["ab"], add_special_tokens=False).flat.tolist() == [0, 1]
    with pytest.raises(ValueError, match="no token"):
        encoder.encode(["abc"], add_special_tokens=False)


# ---- what cannot be used


@needs_fastokens
def test_a_tokenizer_that_fastokens_cannot_read_is_unfit(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    with pytest.raises(Unfit, match=r"refuses this tokenizer: .*Metaspace"):
        build(backend)
    with pytest.raises(Unfit, match=r"refuses this tokenizer: .*Metaspace"):
        FastEncoderBuild(backend).result()


def test_fastokens_that_is_not_installed_is_unfit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastokens", None)
    with pytest.raises(Unfit, match="is not installed"):
        load_fastokens()


@needs_fastokens
@pytest.mark.parametrize(("version", "fits"), [("0.3.2", False), ("0.3.5", True), ("0.10.0", True)])
def test_an_old_fastokens_with_wrong_ids_is_unfit(
    monkeypatch: pytest.MonkeyPatch, version: str, fits: bool
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    if fits:
        assert load_fastokens()[0] == version
    else:
        with pytest.raises(Unfit, match=r"0\.3\.2 is installed; .*0\.3\.5"):
            load_fastokens()


# ---- threads and forks


def count_threads() -> int:
    threads = fast_encoder.count_threads()
    if threads is None:
        pytest.skip("this system does not say how many threads a process has")
    return threads


@needs_fastokens
def test_a_batch_is_encoded_on_the_calling_thread(backend: Tokenizer) -> None:
    encoder = build(backend)
    before = count_threads()
    encoder.encode(["words and more words " * 500] * 100, add_special_tokens=False)
    assert count_threads() == before


def in_a_fork(check: Callable[[], bool], seconds: float = 60) -> str:
    """Run a check in a forked child; return ``passed``, ``failed`` or ``hung``."""
    child = os.fork()
    if child == 0:
        outcome = 1
        try:
            outcome = 0 if check() else 1
        finally:
            os._exit(outcome)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "passed" if status == 0 else "failed"
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


def test_a_fork_that_never_answers_is_seen() -> None:
    assert in_a_fork(lambda: bool(threading.Event().wait(30)), seconds=0.3) == "hung"
    assert in_a_fork(lambda: False) == "failed"


@pytest.mark.parametrize("choice", ["tokenizers", pytest.param("fastokens", marks=needs_fastokens)])
def test_a_forked_worker_encodes_as_its_parent_did(
    choice: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The parent used every core: its pools of threads do not exist in the child.
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    encoder = TextEncoder.from_path(str(FOLDER), encoder=choice)
    texts = [f"text {number}: " + "many words of one conversation " * 50 for number in range(400)]
    encoder.settle(texts)
    expected = encoder.encode(texts)
    decoded = encoder.decode_after_context(expected)

    def check() -> bool:
        encoder.use_one_thread()
        for encode in (encoder.encode, encoder.encode_continuations):
            if not np.array_equal(encode(texts).flat, expected.flat):
                return False
        return encoder.decode_after_context(expected) == decoded and encoder.encoder_name == choice

    assert [in_a_fork(check) for _ in range(3)] == ["passed"] * 3


def test_a_program_that_ends_waits_for_a_build(backend: Tokenizer) -> None:
    # Python ends a daemon as soon as it asks for the interpreter again; in Rust code that aborts
    # the process ("FATAL: exception not rethrown"), whatever its exit code should have been.
    assert not FastEncoderBuild(backend)._thread.daemon


@needs_fastokens
def test_a_fork_while_fastokens_is_being_built_builds_it_in_the_child(
    backend: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, may_build = os.getpid(), threading.Event()
    init = FastEncoder.__init__

    def wait_in_the_parent(self: FastEncoder, *args: Any, **options: Any) -> None:
        if os.getpid() == parent:
            may_build.wait(60)
        init(self, *args, **options)

    monkeypatch.setattr(FastEncoder, "__init__", wait_in_the_parent)
    making = FastEncoderBuild(backend)
    expected = StockEncoder(backend).encode(TEXTS, add_special_tokens=False).flat

    def check() -> bool:
        batch = making.result().encode(TEXTS, add_special_tokens=False)
        return np.array_equal(batch.flat, expected)

    assert in_a_fork(check) == "passed"
    may_build.set()
    assert making.result().version


@needs_fastokens
def test_a_long_text_does_not_wait_for_threads_that_a_fork_left_behind(
    backend: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This pre-tokenizer is none of those that fastokens has a scanner for: it shares out long texts.
    encoder = TextEncoder.from_path(str(FOLDER), encoder="fastokens")
    long = "word and 12 x.\n" * 20_000
    encoder.encode([long])
    assert fast_encoder._pool.is_started
    texts = ["short", "<|im_start|>" + long, "<|im_end|>"]
    expected = StockEncoder(backend).encode(texts, add_special_tokens=False).flat

    def check() -> bool:
        encoder.use_one_thread()
        return np.array_equal(encoder.encode(texts).flat, expected)

    assert in_a_fork(check) == "passed"
    fresh = FastEncoder(backend.to_str(), splits_special_tokens=False)
    assert in_a_fork(lambda: refuses(fresh, texts)) == "passed"


def refuses(encoder: FastEncoder, texts: list[str]) -> bool:
    with pytest.raises(ValueError, match="ended at a fork"):
        encoder.encode(texts, add_special_tokens=False)
    return True


def test_a_pool_that_starts_is_noticed() -> None:
    pool, done = fast_encoder._SharedPool(), threading.Event()
    count_threads()
    with pool.watch():
        pass
    assert not pool.is_started
    with pool.watch():
        threading.Thread(target=done.wait).start()
    done.set()
    assert pool.is_started


def test_where_threads_cannot_be_counted_a_pool_is_taken_to_have_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fast_encoder, "count_threads", lambda: None)
    pool = fast_encoder._SharedPool()
    with pool.watch():
        pass
    assert pool.is_started
