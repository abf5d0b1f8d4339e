"""Texts that share their beginning, each shared piece of them encoded once.

The prompts of the decision points of one conversation repeat each other turn by turn. A text is cut
in front of one control token of the template; what the text before it had up to a cut is copied, and
a piece that was met before keeps its ids: the cost then grows with the conversation, not with its
length times its decision points.

Cutting changes no id because the tokenizer itself splits there before anything else looks at the
text (`AddedVocabulary` of `tokenizers` 0.23: added tokens are found first, leftmost and longest;
what lies between two of them is normalised, pre-tokenized and encoded alone).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final

import numpy as np
from tokenizers import AddedToken, Tokenizer

from pipeline.tokens.ids import EncodedBatch, Ids

# Parts of a backend that look at one run of text between added tokens and at nothing else.
_NORMALISERS: Final = {"NFC", "NFD", "NFKC", "NFKD", "Replace", "Lowercase"}
_PRE_TOKENIZERS: Final = {"Split", "ByteLevel", "Digits", "Punctuation"}
_POST_PROCESSORS: Final = {"ByteLevel", "TemplateProcessing"}

SHORTEST: Final = 2_000  # characters: cutting a shorter text costs what it saves
BEGINNING: Final = 1_000  # characters: texts that share so many are taken to share more
MOST_BEGINNINGS: Final = 20_000  # how many beginnings are remembered
_SAMPLE: Final = 8_000  # characters in which the token to cut at is looked for
_CHOICES: Final = 50  # texts in which it is looked for at most
STOCK_ROOM: Final = 64 << 20  # bytes of pieces and ids that are kept
_NO_IDS: Final = np.empty(0, np.int32)

Encode = Callable[[Sequence[str]], EncodedBatch]


class PieceEncoder:
    """Encodes texts piece by piece where they share a long beginning, and whole where not.

    ``cut_tokens`` are the texts of added tokens in front of which a cut changes no id; without any,
    every text is encoded whole.
    """

    def __init__(self, cut_tokens: Sequence[str], encode: Encode, room: int = STOCK_ROOM) -> None:
        self._cut_tokens = cut_tokens
        self._cut_token = ""
        self._choices = 0
        self._encode = encode
        self._known = _KnownPieces(room)
        self._beginnings: set[int] = set()

    def encode(self, texts: Sequence[str]) -> EncodedBatch:
        """Return the ids of each text, the same as those of encoding it whole."""
        cut: dict[int, _CutText] = {}
        last: _CutText | None = None
        for place in self._find_shared(texts):
            last = cut[place] = self._cut(texts[place], last)
        if not cut:
            return self._encode(texts)
        whole = [text for place, text in enumerate(texts) if place not in cut]
        pieces = {piece for each in cut.values() for piece in each.new}
        ids_of = self._known.find(pieces)
        new = [piece for piece in pieces if piece not in ids_of]
        encoded = self._encode([*whole, *new])
        for place, piece in enumerate(new, len(whole)):
            # A copy, so that a piece that is kept does not keep the block of its whole batch.
            ids_of[piece] = encoded[place].copy()
            self._known.keep(piece, ids_of[piece])
        lengths = np.diff(encoded.offsets[: len(whole) + 1]).tolist()
        for place, each in cut.items():
            lengths.insert(place, each.measure(ids_of))
        offsets = np.cumsum([0, *lengths], dtype=np.int64)
        flat = np.empty(offsets[-1], np.int32)
        rows_of_whole = iter(encoded)
        for place, row in enumerate(EncodedBatch(flat, offsets)):
            each = cut.get(place)
            if each is None:
                row[:] = next(rows_of_whole)
            else:
                each.fill(row, ids_of)
        return EncodedBatch(flat, offsets)

    def _find_shared(self, texts: Sequence[str]) -> list[int]:
        """Return the places of the texts whose beginning was met in this batch or lately."""
        if not self._cut_tokens:
            return []
        beginnings = {
            place: hash(text[:BEGINNING])
            for place, text in enumerate(texts)
            if len(text) >= SHORTEST
        }
        met, repeated = self._beginnings, set[int]()
        for beginning in beginnings.values():
            (repeated if beginning in met else met).add(beginning)
        if len(met) > MOST_BEGINNINGS:
            self._beginnings = set(beginnings.values())
        return [place for place, beginning in beginnings.items() if beginning in repeated]

    def _cut(self, text: str, last: _CutText | None) -> _CutText:
        """Cut a text in front of the control token that this template repeats most."""
        token = self._cut_token or self._choose_cut_token(text)
        shared = 0 if last is None or not token else last.count_shared(text, len(token))
        cuts = [0] if last is None else last.cuts[: shared + 1]
        place = text.find(token, cuts[-1] + len(token) if cuts[-1] else 1) if token else -1
        while place > 0:
            cuts.append(place)
            place = text.find(token, place + len(token))
        new = [text[start:end] for start, end in pairwise([*cuts[shared:], len(text)])]
        return _CutText(text, cuts, last, shared, new)

    def _choose_cut_token(self, text: str) -> str:
        """Choose the token to cut at, once, from a text that has one; empty where it has none."""
        start = text[:_SAMPLE]
        token = max(self._cut_tokens, key=start.count, default="")
        if token and token in start:
            self._cut_token = token
        self._choices += 1
        if not self._cut_token and self._choices == _CHOICES:
            # Prompts without control tokens: stop looking for them.
            self._cut_tokens = ()
        return self._cut_token


class _CutText:
    """A text that begins with the first pieces of ``last``, ``shared`` of them; the others are ``new``.

    ``cuts`` are the places where all of its pieces begin.
    """

    def __init__(
        self, text: str, cuts: list[int], last: _CutText | None, shared: int, new: list[str]
    ) -> None:
        self.text, self.cuts, self.new = text, cuts, new
        self._last, self._shared = last, shared
        self._row: Ids = _NO_IDS
        # How many ids the first pieces have: none of them, one, two, ...
        self._ends: list[int] = [0]

    def count_shared(self, text: str, width: int) -> int:
        """Return how many pieces ``text`` begins with and that end where they do here.

        That takes the token there, of ``width`` characters, to stand in both.
        """
        low, high = 0, len(self.cuts) - 1
        middle = high  # most go on where this one asks the model to speak
        while low < high:
            if text.startswith(self.text[: self.cuts[middle] + width]):
                low = middle
            else:
                high = middle - 1
            middle = (low + high + 1) // 2
        return low

    def measure(self, ids_of: Mapping[str, Ids]) -> int:
        """Return how many ids the text has; the text before it was measured."""
        if self._last is not None:
            self._ends = self._last._ends[: self._shared + 1]
        new = (len(ids_of[piece]) for piece in self.new)
        self._ends += accumulate(new, initial=self._ends.pop())
        return self._ends[-1]

    def fill(self, row: Ids, ids_of: Mapping[str, Ids]) -> None:
        """Write the ids of the text into ``row``; the text before it was written."""
        start = self._ends[self._shared]
        if self._last is not None:
            row[:start] = self._last._row[:start]
        np.concatenate([ids_of[piece] for piece in self.new], out=row[start:])
        self._row = row


class _KnownPieces:
    """Ids of the pieces met lately: at most ``room`` bytes, those not met again dropped first."""

    def __init__(self, room: int) -> None:
        self._half = room // 2
        self._size = 0
        self._recent: dict[str, Ids] = {}
        self._older: dict[str, Ids] = {}

    def find(self, pieces: Iterable[str]) -> dict[str, Ids]:
        """Return the ids of the pieces that are known."""
        found: dict[str, Ids] = {}
        for piece in pieces:
            ids = self._recent.get(piece)
            if ids is None and (ids := self._older.get(piece)) is not None:
                self.keep(piece, ids)
            if ids is not None:
                found[piece] = ids
        return found

    def keep(self, piece: str, ids: Ids) -> None:
        """Remember the ids of a piece."""
        self._size += sys.getsizeof(piece) + sys.getsizeof(ids)
        self._recent[piece] = ids
        if self._size > self._half:
            self._older, self._recent, self._size = self._recent, {}, 0


def find_cut_tokens(backend: Tokenizer) -> list[str]:
    """Return the special tokens in front of which a text can be cut without changing an id.

    None where that cannot be told: another model than BPE, dropout, a first-position rule
    (`Metaspace`, `Prepend`, a prefix space), special tokens that are read as text, or a part of the
    backend that is not known to look at one run of text alone.
    """
    model: Any = backend.model
    if type(model).__name__ != "BPE" or model.dropout or backend.encode_special_tokens:
        return []
    if not (
        _is_made_of(backend.normalizer, "normalizers", _NORMALISERS)
        and _is_made_of(backend.pre_tokenizer, "pretokenizers", _PRE_TOKENIZERS)
        and _is_made_of(backend.post_processor, "processors", _POST_PROCESSORS)
    ):
        return []
    tokens = list(backend.get_added_tokens_decoder().values())
    return [token.content for token in tokens if _is_cut_token(token, tokens)]


def _is_made_of(part: Any, members: str, known: set[str]) -> bool:
    """Say whether a part of a backend is made of known ones alone, none adding a prefix space."""
    if part is None:
        return True
    state = json.loads(part.__getstate__())
    each = state[members] if state["type"] == "Sequence" else [state]
    return all(
        one["type"] in known
        and not (
            one["type"] == "ByteLevel" and members == "pretokenizers" and one["add_prefix_space"]
        )
        for one in each
    )


def _is_cut_token(token: AddedToken, tokens: Sequence[AddedToken]) -> bool:
    """Say whether ``token`` is matched wherever it stands, with nothing taken from before it."""
    text = token.content
    return (
        token.special
        and not (token.normalized or token.lstrip or token.single_word)
        # White space in front could be taken by a token before it that strips to its right.
        and not text[:1].isspace()
        and not any(_can_cover(other.content, text) for other in tokens)
    )


def _can_cover(other: str, text: str) -> bool:
    """Say whether a match of ``other`` can take the beginning of ``text``, or all of it and more."""
    if other != text and other.startswith(text):
        return True
    tails = (other[place:] for place in range(1, len(other)) if other[place] == text[0])
    return any(tail.startswith(text) or text.startswith(tail) for tail in tails)
