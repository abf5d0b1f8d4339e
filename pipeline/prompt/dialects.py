"""The dialects by name: a new server is one module and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.prompt.mlx import MlxDialect
from pipeline.prompt.plain import PlainDialect
from pipeline.prompt.request import SERVER_VERSIONS, Dialect
from pipeline.prompt.sglang import SglangDialect
from pipeline.prompt.transformers_serve import TransformersDialect
from pipeline.prompt.vllm import VllmDialect


def load_dialect(
    name: str,
    options: Mapping[str, Any],
    model_type: str | None,
    folder: Path | None = None,
    model_path: str | None = None,
    has_token: Callable[[str], bool] = lambda _: False,
) -> Dialect:
    """Return the dialect called ``name`` (a key of `SERVER_VERSIONS`).

    ``options`` are the server's own flags (``content_format``, ...); ``model_type`` is that of the
    model's ``config.json`` and ``folder`` the tokenizer's, by which servers choose a renderer that
    is not Jinja. ``model_path`` is the path or Hub name that the server would be given, None where it
    is given a template too: SGLang picks a template of its own by it. ``has_token`` says whether a
    token is in the vocabulary, by which mlx-lm tells whether a model thinks.
    Raises `UsageError` for an unknown name or option, and for a renderer that is not reproduced.
    """

    if name == "vllm":
        return VllmDialect.from_options(options, model_type, folder)
    if name == "sglang":
        return SglangDialect.from_options(options, model_type, model_path)
    if name == "transformers":
        return TransformersDialect.from_options(options)
    if name == "mlx":
        return MlxDialect.from_options(options, model_type, has_token)
    if name == "plain":
        return PlainDialect.from_options(options)
    raise UsageError(f"server: unknown dialect {name!r}; expected {', '.join(SERVER_VERSIONS)}")
