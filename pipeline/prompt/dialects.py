"""The dialects by name: a new server is one module and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.prompt.plain import PlainDialect
from pipeline.prompt.request import Dialect
from pipeline.prompt.sglang import SglangDialect
from pipeline.prompt.vllm import VllmDialect


def load_dialect(
    name: str, options: Mapping[str, Any], model_type: str | None, folder: Path | None = None
) -> Dialect:
    """Return the dialect called ``name`` (``vllm``, ``sglang`` or ``plain``).

    ``options`` are the server's own flags (``content_format``, ...); ``model_type`` is that of the
    model's ``config.json`` and ``folder`` the tokenizer's, by which servers choose a renderer that
    is not Jinja.
    Raises `UsageError` for an unknown name or option, and for a renderer that is not reproduced.
    """

    if name == "vllm":
        return VllmDialect.from_options(options, model_type, folder)
    if name == "sglang":
        return SglangDialect.from_options(options, model_type)
    if name == "plain":
        return PlainDialect.from_options(options)
    raise UsageError(f"server: unknown dialect {name!r}; expected vllm, sglang or plain")
