"""The limit: the encoder alone, on contexts and continuations rendered before the clock starts.

Every text is encoded, equal ones too, on all cores, 500 a call; ``settings["encoder"]`` says which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scripts.bench_peers.workload import Job, Made, read_lines

PACKAGE = DISTRIBUTION = "tokenizers"

_TEXTS_PER_CALL = 500


def load(job: Job) -> Callable[[], Made]:
    """Load the encoder from the backend that transformers built, and render; return the job."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)
    count_tokens = _load_encoder(job.settings["encoder"], tokenizer.backend_tokenizer)
    contexts, continuations = [], []
    for line in read_lines(job.input):
        contexts.append(
            tokenizer.apply_chat_template(
                line["messages"][: line["decision_idx"]], tokenize=False, add_generation_prompt=True
            )
        )
        continuations.append(line["continuation"])
    texts = contexts + continuations
    count_tokens(["warm"] * 8)

    def make() -> Made:
        starts = range(0, len(texts), _TEXTS_PER_CALL)
        tokens = sum(count_tokens(texts[start : start + _TEXTS_PER_CALL]) for start in starts)
        return Made(len(contexts), tokens)

    return make


def _load_encoder(name: str, backend: Any) -> Callable[[list[str]], int]:
    """Return a function that encodes texts and counts the tokens, which costs nothing beside it."""
    if name == "fastokens":
        import fastokens

        fast = fastokens.Tokenizer.from_json_str(backend.to_str())
        return lambda texts: len(fast.encode_batch_flat(texts, add_special_tokens=False)[0]) // 4
    return lambda texts: sum(map(len, backend.encode_batch_fast(texts, add_special_tokens=False)))
