"""The two encoders: `tokenizers`, which is right, and fastokens, which is fast.

fastokens is built from the backend that transformers loaded, never from the file on disk:
transformers rebuilds the pre-tokenizer of some classes, and the file then gives other ids.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import numpy as np
import tokenizers
from tokenizers import Tokenizer

from pipeline.tokens.ids import EncodedBatch, join_lists

# 0.3.2 kept regex matches of the text before, and split white space at the wrong place after a
# shared prefix of 4 KiB; its NFC tables differed too. 0.3.5 gives the ids of `tokenizers` in both.
OLDEST_FASTOKENS: Final = (0, 3, 5)

# fastokens 0.3.5 works on a text of 64 KiB (after normalising, so at most 4 bytes a character) with
# a pool of threads where it has no scanner of its own for the pre-tokenizer.
_POOL_CHARACTERS: Final = 16_000


class Unfit(ValueError):
    """fastokens is not there, too old, or refuses this tokenizer; the message says which."""


class StockEncoder:
    """`tokenizers`: the reference that decides what the ids are."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> EncodedBatch:
        """Return the ids of each text, neither padded nor cut."""
        encodings = self._untouched().encode_batch_fast(
            list(texts), add_special_tokens=add_special_tokens
        )
        return join_lists([encoding.ids for encoding in encodings])

    def _untouched(self) -> Tokenizer:
        """Return the backend, or a copy of it once somebody set padding or truncation on it."""
        if self._backend.padding is not None or self._backend.truncation is not None:
            self._backend = copy_backend(self._backend)
        return self._backend


class _SharedPool:
    """Whether the pool of threads that fastokens shares in a process was started, or lost by a fork.

    A call that hands work to a pool whose threads did not survive a fork never returns.
    """

    def __init__(self) -> None:
        self.is_started = self.is_lost = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._note_fork)

    def _note_fork(self) -> None:
        self.is_lost = self.is_started

    @contextmanager
    def watch(self) -> Generator[None]:
        """Note whether the call inside starts the pool."""
        before = count_threads()
        yield
        self.is_started |= before is None or before != count_threads()


_pool = _SharedPool()


class FastEncoder:
    """fastokens on one thread: the same ids at about twenty times the speed, for byte-level BPE.

    Raises `Unfit` where it cannot be built. Processes share the work, not threads: a text costs
    fastokens less than waking a second thread, and a pool of threads does not outlive a fork.
    """

    def __init__(self, backend_json: str, *, splits_special_tokens: bool) -> None:
        # Read by fastokens when it encodes for the first time; with 1 a batch starts no threads.
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
        self.version, tokenizer = load_fastokens()
        try:
            self._tokenizer: Any = tokenizer.from_json_str(backend_json)
        except ValueError as error:
            raise Unfit(f"fastokens {self.version} refuses this tokenizer: {error}") from error
        self._splits_special_tokens = splits_special_tokens

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool) -> EncodedBatch:
        """Return the ids of each text, in buffers that fastokens filled (read-only, not copied).

        Raises `ValueError` where one of the texts has a byte that is in no token, or is so long
        that it would wait for threads that a fork left behind.
        """
        texts = list(texts)
        is_long = max(map(len, texts), default=0) > _POOL_CHARACTERS
        if is_long and _pool.is_lost:
            raise ValueError("the threads that fastokens shares a long text with ended at a fork")
        with _pool.watch() if is_long and not _pool.is_started else nullcontext():
            ids, offsets = self._tokenizer.encode_batch_flat(
                texts, add_special_tokens, self._splits_special_tokens
            )
        # uint32 and uint64 as they come; every id and offset is far below the sign bit.
        return EncodedBatch(np.frombuffer(ids, np.int32), np.frombuffer(offsets, np.int64))


class FastEncoderBuild:
    """A `FastEncoder` in the making on a thread of its own, as building takes most of a second.

    >>> from tokenizers import Tokenizer
    >>> build = FastEncoderBuild(Tokenizer.from_file("configs/tokenizer/tokenizer.json"))
    >>> build.result().encode(["Hello"], add_special_tokens=False).offsets.tolist()[0]
    0
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._json = backend.to_str()
        self._splits_special_tokens = backend.encode_special_tokens
        self._outcome: FastEncoder | Unfit | None = None
        # No daemon: Python ends those on its way out, which Rust code does not survive.
        self._thread = threading.Thread(target=self._build, name="fastokens")
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """True once `result` need not wait."""
        return self._outcome is not None

    def result(self) -> FastEncoder:
        """Return the encoder once it is built. Raises `Unfit` where it cannot be."""
        self._thread.join()
        if self._outcome is None:
            # The process was forked while the thread ran, which then ended without a result here.
            self._build()
        if isinstance(self._outcome, FastEncoder):
            return self._outcome
        assert isinstance(self._outcome, Unfit), "a build ends in an encoder or a refusal"
        raise self._outcome

    def _build(self) -> None:
        try:
            self._outcome = FastEncoder(
                self._json, splits_special_tokens=self._splits_special_tokens
            )
        except Unfit as error:
            self._outcome = error


def load_fastokens() -> tuple[str, Any]:
    """Return the version of fastokens and its tokenizer class. Raises `Unfit` without one to use."""
    try:
        from fastokens import Tokenizer as FastTokenizer

        version = importlib.metadata.version("fastokens")
    except ImportError as error:
        raise Unfit(f"fastokens is not installed ({error})") from error
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < OLDEST_FASTOKENS:
        oldest = ".".join(map(str, OLDEST_FASTOKENS))
        raise Unfit(f"fastokens {version} is installed; its ids are right from {oldest} on")
    return version, FastTokenizer


def copy_backend(backend: Tokenizer) -> Tokenizer:
    """Return a copy of a backend that neither pads nor cuts."""
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    # Not part of the JSON: a tokenizer that splits special tokens reads them as text.
    copy.encode_special_tokens = backend.encode_special_tokens
    return copy


def use_one_thread() -> None:
    """Keep every encoder of this process to one thread, as a forked worker must.

    `tokenizers` reads its variable at each call, and does not wait then for threads that the parent
    started; the pool of fastokens reads the other when it starts.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"


def count_threads() -> int | None:
    """Return how many threads this process has, or None where the system does not say."""
    try:
        return len([*Path("/proc/self/task").iterdir()])
    except FileNotFoundError:
        return None


def stock_version() -> str:
    """Return the version of `tokenizers`."""
    return tokenizers.__version__
