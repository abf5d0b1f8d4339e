"""Text to ids for a whole batch, and the proof that ids decode to the text they stand for.

Contexts are encoded as the server encodes them: the rendered text, no added special tokens.
Continuations are encoded apart from their context, because the model sampled them after the
context's ids; a tokenizer that treats the first piece of a text differently (a SentencePiece
prefix space) gets an anchor in front, which is cut off again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.errors import UsageError, excerpt_of
from pipeline.tokenizer_files import find_tokenizer_folder

Ids = NDArray[np.int32]

# Texts that a first-position rule would change: letters, spaces, newlines, digits, other scripts.
_ANCHOR_PROBES = (
    "x",
    " x",
    "  x",
    "\nx",
    "\n\nx",
    "\tx",
    "Left.",
    "7",
    "é",
    "да",
    "你好",
    "(",
    "🙂",
)


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Ids of a batch of texts in one block: text ``i`` is ``flat[offsets[i]:offsets[i + 1]]``.

    ``flat`` is int32 [tokens of all texts], ``offsets`` is int64 [texts + 1].
    """

    flat: Ids
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Ids:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]


class TextEncoder:
    """The tokenizer of a served model, as transformers loads it (which is what vLLM loads).

    >>> encoder = TextEncoder.from_path("configs/tokenizer")
    >>> encoder.decode(encoder.encode(["Hello"])[0])
    'Hello'
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, folder: Path | None) -> None:
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise UsageError(
                f"tokenizer: {type(tokenizer).__name__} has no fast backend; "
                "expected one that loads with a tokenizer.json"
            )
        self.tokenizer = tokenizer
        self.folder = folder
        # A copy, so that padding or truncation set by somebody else cannot reach our ids.
        self._backend = Tokenizer.from_str(backend.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        # Not part of the backend's JSON: a tokenizer that splits special tokens reads them as text.
        self._backend.encode_special_tokens = backend.encode_special_tokens

    @classmethod
    def from_path(cls, path: str, *, trust_remote_code: bool = False) -> TextEncoder:
        """Return the encoder of a tokenizer folder or Hub name.

        Raises `UsageError` where there is none, or where it cannot be loaded.
        """
        folder = find_tokenizer_folder(path)
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise UsageError(
                f"tokenizer: {path}: {error}; expected a folder that AutoTokenizer "
                f"of transformers {transformers.__version__} loads"
            ) from error
        return cls(tokenizer, folder)

    @cached_property
    def state(self) -> dict[str, Any]:
        """What determines the ids: the backend as JSON, without padding and truncation."""
        state: dict[str, Any] = json.loads(self._backend.to_str())
        return {
            name: value for name, value in state.items() if name not in ("padding", "truncation")
        }

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """Tokens matched as a whole before anything else, by text: control tokens and marks."""
        return {
            token.content: id_ for id_, token in self._backend.get_added_tokens_decoder().items()
        }

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        """The added tokens that are special: those that ``skip_special_tokens`` would hide."""
        decoder = self._backend.get_added_tokens_decoder()
        return frozenset(token.content for token in decoder.values() if token.special)

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, added tokens included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_id(self) -> int | None:
        """Id of the beginning-of-sequence token, where the tokenizer names one."""
        return self._special_id("bos_token")

    @cached_property
    def adds_bos(self) -> bool:
        """True where encoding with special tokens puts the BOS in front."""
        ids = self._backend.encode("x", add_special_tokens=True).ids
        return self.bos_id is not None and ids[:1] == [self.bos_id]

    def _special_id(self, name: str) -> int | None:
        text = getattr(self.tokenizer, name, None)
        return self._backend.token_to_id(text) if isinstance(text, str) else None

    def token_id(self, text: str) -> int | None:
        """Return the id of the added token ``text``, or None where it is ordinary text."""
        return self.added_tokens.get(text)

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> EncodedBatch:
        """Return the ids of each text."""
        encodings = self._backend.encode_batch_fast(
            list(texts), add_special_tokens=add_special_tokens
        )
        return _join_ids([encoding.ids for encoding in encodings])

    @property
    def continuation_way(self) -> str:
        """How continuations are encoded: ``alone``, ``after a token`` or ``after a newline``."""
        ways = {"encode": "alone", "_encode_after_token": "after a token"}
        return ways.get(self._encode_after_context.__name__, "after a newline")

    def encode_continuations(self, texts: Sequence[str]) -> EncodedBatch:
        """Return the ids of each text as they stand after a context, never at a beginning."""
        return self._encode_after_context(texts)

    def decode(self, ids: Ids | Sequence[int]) -> str:
        """Return the text of ``ids``, special tokens kept, nothing cleaned up."""
        return self._backend.decode(list(map(int, ids)), skip_special_tokens=False)

    def decode_after_context(self, batch: EncodedBatch) -> list[str]:
        """Return the text of each row of ids as it reads after a context."""
        anchor_ids, anchor_text = self._anchor
        sequences = [[*anchor_ids, *batch[i].tolist()] for i in range(len(batch))]
        decoded = self._backend.decode_batch(sequences, skip_special_tokens=False)
        return [text.removeprefix(anchor_text) for text in decoded]

    def normalise(self, text: str) -> str:
        """Return ``text`` as the tokenizer's normaliser changes it before encoding (NFC, for one)."""
        normaliser = self._backend.normalizer
        if normaliser is None:
            return text
        # Runs between added tokens are what the backend hands to the normaliser.
        return "".join(
            run if run in self.added_tokens else normaliser.normalize_str(run)
            for run in self._split_at_added_tokens(text)
        )

    @cached_property
    def _anchor(self) -> tuple[list[int], str]:
        """A token that stands for the context when a continuation is decoded: ids and text."""
        eos: object = getattr(self.tokenizer, "eos_token", None)
        for text in (eos if isinstance(eos, str) else "", *sorted(self.special_tokens)):
            id_ = self.token_id(text)
            if id_ is not None and not self._strips_after(id_):
                return [id_], text
        return [], ""

    def _strips_after(self, id_: int) -> bool:
        token = self._backend.get_added_tokens_decoder()[id_]
        return token.rstrip or token.single_word

    @cached_property
    def _encode_after_context(self) -> Callable[[Sequence[str]], EncodedBatch]:
        """The first way of encoding under which every probe decodes to itself after a context."""
        for way in (self.encode, self._encode_after_token, self._encode_after_newline):
            if self.decode_after_context(way(_ANCHOR_PROBES)) == list(_ANCHOR_PROBES):
                return way
        raise UsageError(
            f"tokenizer: {excerpt_of(self.tokenizer.name_or_path)}: no way found to encode a continuation "
            "without the tokenizer's first-position rule; expected a byte-level or SentencePiece BPE"
        )

    def _encode_after_token(self, texts: Sequence[str]) -> EncodedBatch:
        anchor_ids, anchor_text = self._anchor
        batch = self.encode([anchor_text + text for text in texts])
        return _join_ids([batch[i][len(anchor_ids) :] for i in range(len(batch))])

    def _encode_after_newline(self, texts: Sequence[str]) -> EncodedBatch:
        """Encode each run of ordinary text after a newline: for a prefix space after every token."""
        newline = self.encode(["\n"])[0]
        pieces = [self._split_at_added_tokens(text) for text in texts]
        runs = [run for text in pieces for run in text if run not in self.added_tokens]
        encoded = iter(_rows_of(self.encode(["\n" + run for run in runs])))
        rows: list[Ids] = []
        for text in pieces:
            parts = [
                np.array([self.added_tokens[run]], np.int32)
                if run in self.added_tokens
                else next(encoded)[len(newline) :]
                for run in text
            ]
            rows.append(np.concatenate(parts) if parts else np.empty(0, np.int32))
        return _join_ids(rows)

    def _split_at_added_tokens(self, text: str) -> list[str]:
        return [run for run in self._added_token_pattern.split(text) if run]

    @cached_property
    def _added_token_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.added_tokens, key=len, reverse=True)
        return (
            re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
            if longest_first
            else re.compile("(?!)")
        )


def _rows_of(batch: EncodedBatch) -> list[Ids]:
    return [batch[i] for i in range(len(batch))]


def _join_ids(rows: Sequence[Sequence[int] | Ids]) -> EncodedBatch:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    flat = np.empty(int(offsets[-1]), np.int32)
    for row, start, end in zip(rows, offsets[:-1], offsets[1:], strict=True):
        flat[start:end] = row
    return EncodedBatch(flat, offsets)
