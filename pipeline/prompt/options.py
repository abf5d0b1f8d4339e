"""What a dialect is made with: ``server_options``, the flags and request fields that change what a server
renders, and the models that it does not render with their template."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, cast

from pipeline.errors import UsageError, excerpt_of

Reader = Callable[[str, object], Any]
"""Takes the option's full name and its value; returns what the dialect keeps, or raises."""


def read_options(
    dialect: str, options: Mapping[str, Any], readers: Mapping[str, Reader]
) -> dict[str, Any]:
    """Return the options as the dialect keeps them.

    Raises `UsageError` for an option that the server does not have, with the nearest one that it
    has, and for a value of the wrong kind.
    """
    for name in options:
        if name not in readers:
            near = difflib.get_close_matches(name, readers, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(
                f"server_options.{name}: server: {dialect} has no such option; "
                f"expected one of {', '.join(sorted(readers))}{hint}"
            )
    return {name: readers[name](f"server_options.{name}", value) for name, value in options.items()}


def choice_of(*allowed: str) -> Reader:
    """Return a reader of one of ``allowed``."""

    def read_choice(name: str, value: object) -> str:
        if value not in allowed:
            raise UsageError(f"{name}: found {excerpt_of(value)}; expected {', '.join(allowed)}")
        return str(value)

    return read_choice


def read_flag(name: str, value: object) -> bool:
    """Return a truth value."""
    if not isinstance(value, bool):
        raise UsageError(f"{name}: found {excerpt_of(value)}; expected true or false")
    return value


def read_mapping(name: str, value: object) -> dict[str, Any]:
    """Return a mapping with text keys."""
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) for key in cast("Any", value)
    ):
        raise UsageError(f"{name}: found {excerpt_of(value)}; expected names with values")
    return dict(cast("Mapping[str, Any]", value))


def read_moment(name: str, value: object) -> datetime:
    """Return the moment of an ISO 8601 date, as text or as YAML reads it.

    >>> read_moment("server_options.fixed_date", "2026-11-25")
    datetime.datetime(2026, 11, 25, 0, 0)
    """
    # YAML gives a date for 2026-11-25 and a datetime where a time follows; both print as ISO.
    try:
        return datetime.fromisoformat(str(value))
    except ValueError as error:
        raise UsageError(f"{name}: found {excerpt_of(value)}; expected YYYY-MM-DD") from error


def refuse_renderer(server: str, model_type: str | None, renderer: str) -> UsageError:
    """Return the error for a model whose renderer this package does not have.

    Its template, where it has one, gives ids that the served model never sees, so a dialect refuses it
    when it is made, not row by row.
    """
    return UsageError(
        f"server: {server} does not render model type {model_type!r} with its chat template but with "
        f"its {renderer}, which is not reproduced here; give rendered prompts (raw context), the "
        "server's sampled ids (context_ids, continuation_ids), or server: plain if your server does "
        "use the template"
    )
