"""What ``--help`` says beside the settings themselves: an example of each verb, and settings in groups."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

EXAMPLES: Final = {
    "prepare": "context-frozen prepare --input logs.jsonl --tokenizer path/to/model --output out/set",
    "inspect": "context-frozen inspect out/set --flag truncated --rows 5",
    "check": "context-frozen check --input logs.jsonl --tokenizer path/to/model",
    "verify": "context-frozen verify out/set --server http://127.0.0.1:8000 --rows 1000",
    "report": "context-frozen report out/set --max_lens 2048 4096 --html report.html",
    "diff": "context-frozen diff out/old out/new",
    "push": "context-frozen push out/set team/rows",
    "pull": "context-frozen pull team/rows out/pulled",
    "clean": "context-frozen clean out --dry_run",
}

_REST: Final = "job"
_GROUPS: Final[Mapping[str, Sequence[str]]] = {
    "input": (
        *("input", "format", "decisions", "rejected_continuations", "on_duplicate"),
        "max_reject_rate",
    ),
    "template and server": (
        *("tokenizer", "chat_template", "chat_template_kwargs", "trust_remote_code", "server"),
        *(
            "server_options",
            "raw_context",
            "end_of_turn",
            "opening",
            "tool_call_ids",
            "think",
            "control_tokens",
        ),
        "encoder",
    ),
    "length": (
        *("max_len", "overlong", "overlong_last_turn", "overlong_continuation", "min_context"),
        "max_continuation",
    ),
    "output": (
        *("output", "overwrite", "append", "columns", "validation_fraction", "report"),
        *("pretty_name", "license", "language"),
    ),
    _REST: ("num_proc", "batch_size"),
    "engines": (
        *("executor", "tasks", "workers", "cpus_per_task", "partition", "time", "venv"),
        "ray_address",
    ),
}
_GROUPED: Final = frozenset(name for names in _GROUPS.values() for name in names)


def group_settings(names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the groups of the settings of ``prepare``, each with those of ``names`` that are in it.

    >>> dict(group_settings(["max_len", "input"]))
    {'input': ['input'], 'length': ['max_len']}
    """
    for group, known in _GROUPS.items():
        found = [name for name in known if name in names]
        if group == _REST:
            found += [name for name in names if name not in _GROUPED]
        if found:
            yield group, found


def read_field_words(kind: type[Any]) -> dict[str, str]:
    """Return the sentence below each field of a dataclass and of those that it inherits, as one line."""
    words: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if dataclasses.is_dataclass(owner):
            words |= _read_words_below(owner)
    return words


def _read_words_below(kind: type[Any]) -> dict[str, str]:
    words: dict[str, str] = {}
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    for field, after in zip(body.body, body.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            words[field.target.id] = " ".join(str(after.value.value).split())
    return words
