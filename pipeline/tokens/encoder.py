"""Text to ids for a whole batch, and the proof that ids decode to the text they stand for.

Contexts are encoded as the server encodes them: the rendered text, no added special tokens.
Continuations are encoded apart from their context, because the model sampled them after the
context's ids; a tokenizer that treats the first piece of a text differently (a SentencePiece
prefix space) gets an anchor in front, which is cut off again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.errors import UsageError, excerpt_of, shorten_middle
from pipeline.tokens.backends import copy_backend, use_one_thread
from pipeline.tokens.checked_encoder import SETTLED_TEXTS, CheckedEncoder, EncoderChoice
from pipeline.tokens.files import (
    find_tokenizer_folder,
    hash_tokenizer_files,
    refuse_huge_ids,
)
from pipeline.tokens.ids import ByteTable, EncodedBatch, Ids, join_rows, make_byte_table
from pipeline.tokens.probes import refuse_other_ids, refuse_random_ids

# Of what a library says of a folder that it cannot load.
_MOST_WORDS = 400

TOKENS_FOR_TABLE = 50_000
"""Until so many were decoded, the table of bytes (of 150,000 tokens) costs more than it saves."""

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


class TextEncoder:
    """The tokenizer of a served model, as transformers loads it (which is what vLLM loads).

    >>> encoder = TextEncoder.from_path("configs/tokenizer")
    >>> encoder.decode(encoder.encode(["Hello"])[0])
    'Hello'
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path | None,
        encoder: EncoderChoice = "tokenizers",
        *,
        is_shared: bool = True,
    ) -> None:
        """Take over ``tokenizer``, loaded from ``folder`` where it came from one.

        Raises `UsageError` for one without a fast backend, and for one that draws its ids at random.

        ``encoder``: `CheckedEncoder` says what each choice means. ``is_shared`` is False where nobody
        else holds the tokenizer: it is then not copied (0.3 s for 150,000 tokens).
        """
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise UsageError(
                f"tokenizer: {type(tokenizer).__name__} has no fast backend; "
                "expected one that loads with a tokenizer.json"
            )
        # Before it is copied: the copy of a Unigram model would not sample any more.
        refuse_random_ids(backend)
        self.tokenizer = tokenizer
        self.folder = folder
        # A copy, so that what somebody else sets on it cannot reach our ids.
        self._backend = copy_backend(backend) if is_shared else backend
        self._backend.no_padding()
        self._backend.no_truncation()
        self._encoder = CheckedEncoder(self._backend, encoder)
        self._decoded = 0

    @classmethod
    def from_path(
        cls, path: str, *, trust_remote_code: bool = False, encoder: EncoderChoice = "tokenizers"
    ) -> TextEncoder:
        """Return the encoder of a tokenizer folder or Hub name.

        Raises `UsageError` where there is none, or where it cannot be loaded.
        """
        folder = find_tokenizer_folder(path)
        files = tuple(hash_tokenizer_files(folder).items())
        refuse_huge_ids(path, folder)
        try:
            tokenizer = _load_tokenizer(folder.resolve(), files, trust_remote_code)
        except Exception as error:  # `tokenizers` raises nothing more precise for a torn file.
            # What it says first and last stays: the remedy of transformers is its last words.
            said = " ".join(str(error).split()) or type(error).__name__
            words = shorten_middle(said, _MOST_WORDS)
            raise UsageError(
                f"tokenizer: {path}: {words}; expected a folder that AutoTokenizer "
                f"of transformers {transformers.__version__} loads"
            ) from error
        return cls(tokenizer, folder, encoder, is_shared=False)

    @property
    def encoder_name(self) -> str:
        """What makes the ids now: ``fastokens`` or ``tokenizers``."""
        return self._encoder.name

    @property
    def encoder_checks(self) -> dict[str, Any]:
        """The encoder in use for the seal: name, version, what it was checked on or why it is used."""
        return self._encoder.checks

    def settle(self, texts: Iterable[str]) -> None:
        """Compare the encoder in use with `tokenizers` on the first texts of a job, up to 200.

        One difference, and `tokenizers` encodes from then on; where fastokens was asked for by
        name it raises `UsageError`, as it does where a text has other ids when it is encoded again.
        """
        kept = [*islice(texts, SETTLED_TEXTS)]
        refuse_other_ids(self._backend, kept)
        self._encoder.settle(kept)

    def use_one_thread(self) -> None:
        """Encode on the calling thread alone from now on, as a forked worker must."""
        use_one_thread()

    @cached_property
    def state_sha256(self) -> str:
        """Hex digest of what determines the ids: the backend as JSON, without padding and truncation."""
        backend = self._backend
        if backend.padding is not None or backend.truncation is not None:
            backend = copy_backend(backend)
        return hashlib.sha256(backend.to_str().encode()).hexdigest()

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
    def pad_id(self) -> int | None:
        """Id of the padding token, where the tokenizer names one."""
        return self._special_id("pad_token")

    @cached_property
    def pads_alone(self) -> bool:
        """True where the padding token neither begins nor ends a text."""
        return self.pad_id not in (None, self.bos_id, self._special_id("eos_token"))

    @cached_property
    def adds_bos(self) -> bool:
        """True where encoding with special tokens puts the BOS in front."""
        ids = self.encode(["x"], add_special_tokens=True)[0]
        return self.bos_id is not None and ids[:1].tolist() == [self.bos_id]

    def _special_id(self, name: str) -> int | None:
        text = getattr(self.tokenizer, name, None)
        return self._backend.token_to_id(text) if isinstance(text, str) else None

    def token_id(self, text: str) -> int | None:
        """Return the id of the added token ``text``, or None where it is ordinary text."""
        return self.added_tokens.get(text)

    def has_token(self, text: str) -> bool:
        """Say whether ``text`` is a token of the vocabulary, an added one or not."""
        return self._backend.token_to_id(text) is not None

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> EncodedBatch:
        """Return the ids of each text.

        What texts of this batch or of late ones have in common from their beginning is encoded once
        where that pays (`pipeline.tokens.pieces`): the cost then grows with a conversation, not with
        its length times its decision points.
        """
        return self._encoder.encode(texts, add_special_tokens=add_special_tokens)

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
        self._decoded += len(batch.flat)
        table = self._byte_table if self._decoded > TOKENS_FOR_TABLE else None
        if table is not None and table.covers(batch):
            # Byte-level tokens decode alike after any text.
            return table.decode(batch)
        anchor_ids, anchor_text = self._anchor
        sequences = [[*anchor_ids, *ids.tolist()] for ids in batch]
        decoded = self._backend.decode_batch(sequences, skip_special_tokens=False)
        return [text.removeprefix(anchor_text) for text in decoded]

    @cached_property
    def _byte_table(self) -> ByteTable | None:
        return make_byte_table(self._backend)

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
        return join_rows([ids[len(anchor_ids) :] for ids in batch])

    def _encode_after_newline(self, texts: Sequence[str]) -> EncodedBatch:
        """Encode each run of ordinary text after a newline: for a prefix space after every token."""
        newline = self.encode(["\n"])[0]
        pieces = [self._split_at_added_tokens(text) for text in texts]
        runs = [run for text in pieces for run in text if run not in self.added_tokens]
        encoded = iter(self.encode(["\n" + run for run in runs]))
        rows: list[Ids] = []
        for text in pieces:
            parts = [
                np.array([self.added_tokens[run]], np.int32)
                if run in self.added_tokens
                else next(encoded)[len(newline) :]
                for run in text
            ]
            rows.append(np.concatenate(parts) if parts else np.empty(0, np.int32))
        return join_rows(rows)

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


@lru_cache(maxsize=1)
def _load_tokenizer(
    folder: Path, files: tuple[tuple[str, str], ...], trust_remote_code: bool
) -> Any:
    """Return the tokenizer of a folder with these ``files`` (names and hashes), the last one kept.

    A notebook prepares, verifies and loads with one tokenizer; and `tokenizers` 0.23 does not free
    all of one that has encoded (45 KB for each 200 texts).
    """
    del files
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
