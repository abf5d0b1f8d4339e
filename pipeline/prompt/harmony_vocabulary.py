"""The Harmony encoder with the vocabulary of a gpt-oss ``tokenizer.json``, so that nothing is downloaded."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UsageError

if TYPE_CHECKING:
    import openai_harmony as harmony

_VOCABULARY = "o200k_base.tiktoken"


@lru_cache(maxsize=2)
def load_encoding(folder: Path | None) -> harmony.HarmonyEncoding:
    """Return the Harmony encoder, its vocabulary taken from the ``tokenizer.json`` of ``folder``.

    Raises `UsageError` where the extra is not installed or the vocabulary is another model's.
    """
    try:
        import openai_harmony as harmony
    except ImportError as error:
        raise UsageError(
            "gpt-oss prompts need the Harmony encoder; install context-frozen[harmony]"
        ) from error
    if folder is not None and "TIKTOKEN_ENCODINGS_BASE" not in os.environ:
        os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(write_vocabulary(folder))
    try:
        return harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
    except harmony.HarmonyError as error:
        raise UsageError(
            f"the Harmony encoder has no vocabulary ({error}); expected a tokenizer folder with the "
            "tokenizer.json of gpt-oss"
        ) from error


def write_vocabulary(folder: Path) -> Path:
    """Write the vocabulary of ``folder/tokenizer.json`` for the encoder; return where it lies.

    One line per token, ``base64 id``, as tiktoken reads them. Kept in the user's cache under the
    sha256 of ``tokenizer.json``; the encoder itself checks the file's digest.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    source = (folder / "tokenizer.json").read_bytes()
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = home / "context-frozen" / "harmony" / hashlib.sha256(source).hexdigest()[:16]
    if (target / _VOCABULARY).exists():
        return target
    vocabulary: Mapping[str, int] = json.loads(source)["model"]["vocab"]
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    lines = [
        b"%s %d" % (base64.b64encode(bytes(byte_of[character] for character in token)), number)
        for token, number in sorted(vocabulary.items(), key=lambda entry: entry[1])
    ]
    target.mkdir(parents=True, exist_ok=True)
    # Several workers may come here at once: each writes its own file, the rename is atomic.
    partial = target / f"{_VOCABULARY}.{os.getpid()}"
    partial.write_bytes(b"\n".join(lines) + b"\n")
    partial.replace(target / _VOCABULARY)
    return target
