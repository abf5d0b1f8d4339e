"""The files of a tokenizer folder that determine ids, templates and stop tokens.

Nothing heavy is imported, so that a finished job can be recognised before transformers loads.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import orjson

from pipeline.errors import UsageError, excerpt_of, shorten_middle
from pipeline.lines.bounded_json import NotThatJson, read_object

# Everything that transformers reads for a tokenizer; config.json because its model_type decides
# which class transformers 5 builds, generation_config.json for the stop ids.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
)
MOST_IDS: Final = 10_000_000
"""Ids that a tokenizer may have; the largest vocabularies have 300,000."""
# Of tokenizer.json; the others, such as truncation, hold numbers that are no ids.
_FIELDS_OF_IDS: Final = ("model", "added_tokens", "post_processor", "vocab", "special_tokens")
_LONG_NUMBER: Final = re.compile(rb"(?<![\d.])\d{8}")

_PATTERNS = (
    *TOKENIZER_FILES,
    "additional_chat_templates/*.jinja",
    "tokenizer.*.json",  # older forms that tokenizer_config.json may choose
    "*.model",  # SentencePiece, from which a folder without tokenizer.json is converted
    "tokenizer.model.v*",
    "*.tiktoken",
    "*.py",  # runs only where trust_remote_code lets it, and then decides everything
)


_LONGEST_SHOWN = 200


def find_tokenizer_folder(path: str) -> Path:
    """Return the folder of a tokenizer given as a folder or as a Hub name.

    A Hub name is fetched (or taken from the local cache) with ``huggingface_hub``, tokenizer files
    only. Raises `UsageError` where nothing is found.
    """
    shown = shorten_middle(path, _LONGEST_SHOWN)
    try:
        folder = Path(path).expanduser()
        is_folder, is_there = folder.is_dir(), folder.exists()
    except (OSError, RuntimeError) as error:
        # A name past the limit, a home of nobody.
        raise UsageError(
            f"tokenizer: {shown}: {getattr(error, 'strerror', None) or error}; expected a folder or a Hub "
            "name like org/model"
        ) from error
    if is_folder:
        if not hash_tokenizer_files(folder):
            raise UsageError(
                f"tokenizer: {shown}: no tokenizer file in this folder; "
                "expected tokenizer.json and its neighbours"
            )
        return folder
    if is_there:
        raise UsageError(f"tokenizer: {shown} is a file; expected the folder that holds it")
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UsageError(
            f"tokenizer: {shown}: no such folder; expected a folder or a Hub name like org/model"
        )
    from huggingface_hub import snapshot_download

    # The class is of the HTTP library that the installed client was built on.
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        return Path(snapshot_download(path, allow_patterns=list(_PATTERNS)))
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        # Answers of the Hub are an OSError; a token that is no ASCII is a ValueError.
        raise UsageError(
            f"tokenizer: {shown}: neither a folder nor to be had from the Hub ({type(error).__name__}); "
            "check the name, or download it first and give the folder"
        ) from error


def hash_tokenizer_files(folder: Path) -> dict[str, str]:
    """Return the sha256 (hex) of each tokenizer file in ``folder``, by relative name."""
    found = sorted(
        {path for pattern in _PATTERNS for path in folder.glob(pattern) if path.is_file()}
    )
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in found
    }


def refuse_huge_ids(path: str, folder: Path) -> None:
    """Refuse a tokenizer with an id of `MOST_IDS` or more. Raises `UsageError`.

    The libraries make tables of the size of the greatest id, for hours where it is near 2^31; the
    saved rows hold ids as int32.
    """
    for file in sorted({*folder.glob("*.json")}):
        # Reading a vocabulary of 20 MB takes a quarter of a second, looking for a long number little.
        if not file.is_file() or not _LONG_NUMBER.search(content := file.read_bytes()):
            continue
        try:
            ids = list(_find_ids(file.name, orjson.loads(content)))
        except orjson.JSONDecodeError:
            # Who loads it says what is wrong with it.
            continue
        greatest = max(ids, default=0)
        if greatest >= MOST_IDS:
            raise UsageError(
                f"tokenizer: {path}: {file.name} has the id {excerpt_of(greatest)}; expected ids below "
                f"{MOST_IDS}: give its tokens the numbers after the last one"
            )


def _find_ids(name: str, values: Any) -> Iterator[int]:
    """Yield the ids that a file of a tokenizer gives to tokens."""
    if name == "tokenizer_config.json":
        added: Any = values.get("added_tokens_decoder") if isinstance(values, dict) else None
        yield from (int(key) for key in (added or {}) if str(key).isdecimal())
    elif name in ("vocab.json", "added_tokens.json"):
        yield from _find_numbers(values)
    elif name.startswith(("tokenizer.", "tekken.")) and isinstance(values, dict):
        fields = cast("dict[str, Any]", values)
        yield from _find_numbers([fields.get(key) for key in _FIELDS_OF_IDS])


def _find_numbers(value: Any) -> Iterator[int]:
    level = [value]
    while level:
        part = level.pop()
        if isinstance(part, dict):
            level += cast("dict[str, Any]", part).values()
        elif isinstance(part, list):
            level += cast("list[Any]", part)
        elif isinstance(part, int):
            yield part


def read_model_config(folder: Path | None) -> dict[str, Any]:
    """Return ``config.json`` of the folder, or nothing where there is none."""
    return _read_json(folder, "config.json")


def read_model_type(folder: Path | None) -> str | None:
    """Return ``model_type`` of the model, by which servers choose a renderer."""
    model_type = read_model_config(folder).get("model_type")
    return model_type if isinstance(model_type, str) else None


def read_position_limit(folder: Path | None) -> int | None:
    """Return the most tokens that the model can take, from its ``config.json``, or None."""
    config = read_model_config(folder)
    text_config = config.get("text_config")
    for settings in (config, text_config if isinstance(text_config, dict) else {}):
        for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
            limit = cast("dict[str, Any]", settings).get(name)
            if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
                return limit
    return None


def read_stop_ids(folder: Path | None) -> frozenset[int]:
    """Return the ids at which the server stops, from ``generation_config.json``."""
    stop: object = _read_json(folder, "generation_config.json").get("eos_token_id")
    ids = stop if isinstance(stop, list) else [stop]
    return frozenset(id_ for id_ in ids if isinstance(id_, int) and not isinstance(id_, bool))


def _read_json(folder: Path | None, name: str) -> dict[str, Any]:
    if folder is None or not (folder / name).is_file():
        return {}
    try:
        return read_object(folder / name)
    except NotThatJson as error:
        raise UsageError(f"tokenizer: {folder / name}: {error}") from error
    except OSError as error:
        raise UsageError(f"tokenizer: {folder / name}: {error.strerror}; expected JSON") from error
