"""Train the bundled tokenizer: a small byte-level BPE that the quickstart and the tests use.

    python scripts/train_tokenizer.py [FOLDER]

writes ``tokenizer.json``, ``tokenizer_config.json``, ``config.json`` and
``generation_config.json`` to FOLDER (``configs/tokenizer``). The chat template in that folder is
written by hand and stays. The same texts give the same bytes, on every machine and number of
threads; ``tests/whole_jobs/test_bundled.py`` holds the committed files to that.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "configs" / "data"
FOLDER = ROOT / "configs" / "tokenizer"

VOCAB_SIZE = 3072
MAX_POSITIONS = 2048

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
MARKS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
"""Tokens that stand for themselves in text: decoding without special tokens keeps them."""

# A word takes the space before it and keeps its combining marks (Devanagari, Thai and Tamil vowels
# are marks); digits come in threes; punctuation takes the line ends after it; spaces before a word
# split so that the last one goes to the word.
PIECE = (
    r" ?[\p{L}\p{M}]+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)


def training_texts(data: Path) -> Iterator[str]:
    """Yield every string of the bundled examples, then the corpus.

    The strings are decoded JSON: the merges should learn line ends, not their escapes.
    """
    for line in (data / "examples.jsonl").read_bytes().decode("utf-8").split("\n"):
        if line:
            yield from strings_of(json.loads(line))
    yield (data / "corpus.txt").read_bytes().decode("utf-8")


def strings_of(value: Any) -> Iterator[str]:
    """Yield the strings in a JSON value, the keys too, in order.

    >>> list(strings_of({"a": ["b", {"c": 1}]}))
    ['a', 'b', 'c']
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, member in value.items():
            yield key
            yield from strings_of(member)
    elif isinstance(value, list):
        for member in value:
            yield from strings_of(member)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Return a byte-level BPE of `VOCAB_SIZE` tokens, the added tokens last.

    No normaliser and all 256 bytes in the alphabet: decoding gives back any text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # It adds nothing to the ids. Without any, transformers would put one of its own here.
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL_TOKENS) - len(MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in MARKS])
    return tokenizer


def write_tokenizer_folder(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``tokenizer`` to ``folder`` as transformers and vLLM open it.

    ``config.json`` describes a Llama small enough to be made at random in a test.
    """
    id_of = tokenizer.token_to_id
    generic_class = "PreTrainedTokenizerFast"  # takes tokenizer.json as it is
    tokenizer_config = {
        "tokenizer_class": generic_class,
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "additional_special_tokens": [TURN_START],
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": id_of(TURN_END),
        "pad_token_id": id_of(END_OF_TEXT),
        "dtype": "float32",
    }
    generation_config = {
        "eos_token_id": [id_of(TURN_END), id_of(END_OF_TEXT)],
        "pad_token_id": id_of(END_OF_TEXT),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(tokenizer.to_str().encode("utf-8") + b"\n")
    for name, value in {
        "tokenizer_config.json": tokenizer_config,
        "config.json": config,
        "generation_config.json": generation_config,
    }.items():
        (folder / name).write_bytes(json.dumps(value, indent=2).encode("utf-8") + b"\n")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    write_tokenizer_folder(train_tokenizer(training_texts(DATA)), folder)
    print(f"{VOCAB_SIZE} tokens written to {folder}")


if __name__ == "__main__":
    main()
