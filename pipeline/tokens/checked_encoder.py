"""Which encoder makes the ids: fastokens where it was seen to agree with `tokenizers`, else the latter.

The choice never shows in the ids. fastokens is compared on probes when it is built and on the
first texts of the job; one difference and `tokenizers` encodes everything from then on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final, Literal

import numpy as np
from tokenizers import Tokenizer

from pipeline.errors import UsageError, excerpt_of
from pipeline.tokens.backends import (
    FastEncoder,
    FastEncoderBuild,
    StockEncoder,
    Unfit,
    stock_version,
)
from pipeline.tokens.ids import EncodedBatch, join_batches
from pipeline.tokens.pieces import SHORTEST, STOCK_ROOM, PieceEncoder, find_cut_tokens
from pipeline.tokens.probes import make_probes

EncoderChoice = Literal["auto", "tokenizers", "fastokens"]

SETTLED_TEXTS: Final = 200
# `tokenizers` takes most of a second for a million characters: long texts are compared whole only
# while this lasts, then by their beginnings. None is so long that fastokens would start threads.
_JOB_CHARACTERS: Final = 250_000
_LONGEST: Final = 16_000
_BEGINNING: Final = 1_000
_CLOSED_PROBES: Final = 40  # probes that are also encoded with the tokenizer's BOS and EOS

# Several threads may encode before it is known which encoder does. No part of an encoder, which
# could not be pickled then.
_FINISHING: Final = threading.Lock()

_log = logging.getLogger(__name__)


class CheckedEncoder:
    """The encoder in use for one backend, and what it was checked on.

    With ``auto`` a fastokens that is missing, refuses the tokenizer or gives other ids is replaced
    by `tokenizers`, with one log line; with ``fastokens`` each of these raises `UsageError`.
    """

    def __init__(self, backend: Tokenizer, choice: EncoderChoice) -> None:
        self._stock = StockEncoder(backend)
        # With fastokens, and with `tokenizers`, which encodes until the other is built.
        self._pieces: dict[bool, PieceEncoder] = {}
        self._backend = backend
        self._is_forced = choice == "fastokens"
        self._build = None if choice == "tokenizers" else FastEncoderBuild(backend)
        self._fast: FastEncoder | None = None
        self._reason = "asked for"
        self._probe_texts = self._job_texts = 0
        if self._is_forced:
            self._finish_build()

    @property
    def name(self) -> str:
        """The encoder in use now: ``fastokens`` or ``tokenizers``."""
        return "tokenizers" if self._finish_build() is None else "fastokens"

    @property
    def checks(self) -> dict[str, Any]:
        """The encoder in use, its version, and the texts it was compared on or why it is in use."""
        fast = self._finish_build()
        if fast is None:
            return {"name": "tokenizers", "version": stock_version(), "reason": self._reason}
        return {
            "name": "fastokens",
            "version": fast.version,
            "probe_texts": self._probe_texts,
            "job_texts": self._job_texts,
        }

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> EncodedBatch:
        """Return the ids of each text, from `tokenizers` while fastokens is still being built."""
        build = self._build
        fast = self._fast if build and not build.is_done else self._finish_build()
        if add_special_tokens or max(map(len, texts), default=0) < SHORTEST:
            return self._encode_whole(fast, texts, add_special_tokens)
        pieces = self._pieces.get(fast is None)
        if pieces is None:
            # fastokens encodes a piece as fast as one is looked up, so none is kept for it.
            pieces = self._pieces[fast is None] = PieceEncoder(
                find_cut_tokens(self._backend),
                partial(self._encode_whole, fast),
                STOCK_ROOM if fast is None else 0,
            )
        return pieces.encode(texts)

    def _encode_whole(
        self, fast: FastEncoder | None, texts: Sequence[str], add_special_tokens: bool = False
    ) -> EncodedBatch:
        if fast is None:
            return self._stock.encode(texts, add_special_tokens=add_special_tokens)
        return self._encode_fast(fast, texts, add_special_tokens)

    def settle(self, texts: Iterable[str]) -> None:
        """Compare the first texts of a job, up to 200, under both encoders."""
        if self._build is None and self._fast is None:
            return
        sample = list(_sample_of(texts))
        expected = self._stock.encode(sample, add_special_tokens=False)
        fast = self._finish_build()
        if fast and self._agrees(fast, sample, expected, add_special_tokens=False):
            self._job_texts = len(sample)

    def _finish_build(self) -> FastEncoder | None:
        """Take fastokens into use if it gives the ids of `tokenizers` for every probe; return it."""
        with _FINISHING:
            if self._build is not None:
                self._fast = self._check_build(self._build)
                self._build = None
        return self._fast

    def _check_build(self, build: FastEncoderBuild) -> FastEncoder | None:
        """Return the encoder that was built, or None where it differs from `tokenizers`."""
        added = self._backend.get_added_tokens_decoder().values()
        probes = make_probes([token.content for token in added])
        closed = probes[:_CLOSED_PROBES]
        # While the other thread builds.
        expected = self._stock.encode(probes, add_special_tokens=False)
        expected_closed = self._stock.encode(closed, add_special_tokens=True)
        try:
            fast = build.result()
        except Unfit as error:
            self._fall_back(str(error))
            return None
        if self._agrees(fast, probes, expected, add_special_tokens=False) and self._agrees(
            fast, closed, expected_closed, add_special_tokens=True
        ):
            self._probe_texts = len(probes)
            return fast
        return None

    def _encode_fast(
        self, fast: FastEncoder, texts: Sequence[str], add_special_tokens: bool
    ) -> EncodedBatch:
        """Return the ids of each text; one that fastokens refuses goes through `tokenizers` alone."""
        try:
            return fast.encode(texts, add_special_tokens=add_special_tokens)
        except ValueError:
            if len(texts) == 1:
                return self._stock.encode(texts, add_special_tokens=add_special_tokens)
        # The error does not say which text it was.
        middle = len(texts) // 2
        return join_batches(
            self._encode_fast(fast, texts[:middle], add_special_tokens),
            self._encode_fast(fast, texts[middle:], add_special_tokens),
        )

    def _agrees(
        self,
        fast: FastEncoder,
        texts: Sequence[str],
        expected: EncodedBatch,
        *,
        add_special_tokens: bool,
    ) -> bool:
        """Say whether fastokens gives the expected ids; where it does not, give it up."""
        found = self._encode_fast(fast, texts, add_special_tokens)
        if np.array_equal(found.offsets, expected.offsets) and np.array_equal(
            found.flat, expected.flat
        ):
            return True
        place = next(i for i in range(len(texts)) if not np.array_equal(found[i], expected[i]))
        self._fall_back(
            f"fastokens {fast.version} gives other ids than tokenizers {stock_version()} "
            f"for {excerpt_of(texts[place])}"
        )
        return False

    def _fall_back(self, reason: str) -> None:
        if self._is_forced:
            raise UsageError(f"encoder: {reason}; expected the same ids; use encoder: auto")
        self._fast, self._reason = None, reason
        _log.warning("encoder: %s; tokenizers encodes instead, which is slower", reason)


def _sample_of(texts: Iterable[str]) -> Iterable[str]:
    """Yield the first texts: whole while the characters last, then the beginning of each."""
    left = _JOB_CHARACTERS
    for text, _ in zip(texts, range(SETTLED_TEXTS), strict=False):
        part = text[: min(max(left, _BEGINNING), _LONGEST)]
        left -= len(part)
        yield part
