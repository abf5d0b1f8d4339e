"""The same text, the same ids: a tokenizer that draws its ids at random can make no data set.

`tokenizers` applies BPE dropout and Unigram sampling whenever they are set, at inference too, and
neither transformers nor a server switches them off (transformers 5, ``AutoTokenizer``; vLLM 0.33.0,
``vllm/tokenizers/hf.py``). The served prompt of such a tokenizer is another at each request, so
there are no ids to reproduce.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from tokenizers import Tokenizer

from pipeline.errors import UsageError, excerpt_of
from pipeline.tokens.probes import SENTENCES

_SAMPLERS: Final = ("dropout", "alpha")  # of BPE, of Unigram (`tokenizers` 0.23)
_TEXTS: Final = 20
_CHARACTERS: Final = 1_000


def refuse_random_ids(backend: Tokenizer) -> None:
    """Refuse a tokenizer that samples. Raises `UsageError` with the field that says so."""
    for name in _SAMPLERS:
        value = getattr(backend.model, name, None)
        if value:
            raise UsageError(
                f"tokenizer: model.{name} is {value:g}, so it draws its ids at random, here and on a "
                f"server; expected the same ids at each run: set model.{name} to null in "
                "tokenizer.json, where the server has it too"
            )
    refuse_other_ids(backend, SENTENCES)


def refuse_other_ids(backend: Tokenizer, texts: Iterable[str]) -> None:
    """Encode the first texts twice. Raises `UsageError` where one has other ids the second time."""
    sample = [text[:_CHARACTERS] for text in islice(texts, _TEXTS)]
    first, second = _encode(backend, sample), _encode(backend, sample)
    for text, before, after in zip(sample, first, second, strict=True):
        if before != after:
            raise UsageError(
                f"tokenizer: {excerpt_of(text)} has other ids when it is encoded again; expected a "
                "tokenizer that gives the same ids at each run"
            )


def _encode(backend: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]
