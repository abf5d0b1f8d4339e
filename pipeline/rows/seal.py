"""What determines rows, apart from the input: the part of a seal that needs no loaded tokenizer."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from pipeline.config import RowSettings
from pipeline.errors import UsageError
from pipeline.prompt.request import SERVER_VERSIONS
from pipeline.prompt.vllm_versions import read_rules
from pipeline.tokens.files import find_tokenizer_folder, hash_tokenizer_files

SEAL_FORMAT: Final = 2
"""Raised when the same inputs would no longer give the same rows."""

# Libraries whose release can change a rendered text or an id.
_VERSIONED: Final = ("context-frozen", "transformers", "tokenizers", "jinja2")


def make_row_seal(settings: RowSettings) -> dict[str, Any]:
    """Return the seal of rows without their input.

    Raises `UsageError` where the tokenizer or the template file is missing.
    """
    folder = find_tokenizer_folder(settings.tokenizer)
    version = SERVER_VERSIONS[settings.server]
    if settings.server == "vllm" and "server_version" in settings.server_options:
        asked = settings.server_options["server_version"]
        version = read_rules("server_options.server_version", asked).release
    return {
        "format": SEAL_FORMAT,
        "tokenizer": {"files": hash_tokenizer_files(folder)},
        "chat_template": _hash_text_file(settings.chat_template),
        "server": {"name": settings.server, "version": version},
        "settings": settings.sealed_settings(),
        "versions": {name: metadata.version(name) for name in _VERSIONED},
    }


def hash_json(value: object) -> str:
    """Return the sha256 (hex) of a value as canonical JSON: sorted keys, no spaces, ASCII."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file_bytes(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_text_file(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(
            f"chat_template: {path}: {error.strerror}; expected a Jinja file"
        ) from error
