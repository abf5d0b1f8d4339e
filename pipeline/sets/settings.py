"""Settings as a person reads them: the command that gives them, nested records as dotted names."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pipeline.config import PrepareConfig

# How a job ran, not what it made: another machine would say something else.
_OF_THE_RUN: Final = {
    *("num_proc", "batch_size", "overwrite"),
    *("executor", "tasks", "workers", "cpus_per_task", "partition", "time", "venv", "ray_address"),
}


def write_command(config: Mapping[str, Any]) -> str:
    """Return the command line that gives a resolved config, defaults left out.

    >>> write_command({"input": ["a b.jsonl"], "tokenizer": "org/m", "output": "s", "max_len": 99})
    "context-frozen prepare --input 'a b.jsonl' --tokenizer org/m --output s --max_len 99"
    """
    return shlex.join(["context-frozen", "prepare", *_flags_of(config)])


def flatten_record(record: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of a nested record by their dotted names; a list of plain values is a leaf.

    >>> flatten_record({"server": {"name": "vllm"}, "input": [{"name": "a"}], "kwargs": {}})
    {'server.name': 'vllm', 'input.0.name': 'a', 'kwargs': {}}
    """
    is_nested = isinstance(record, (list, tuple)) and any(isinstance(each, dict) for each in record)
    items = dict(enumerate(record)) if is_nested else record
    if not isinstance(items, dict) or not items:
        return {name: record}
    leaves: dict[str, Any] = {}
    for key, value in items.items():
        leaves |= flatten_record(value, f"{name}.{key}" if name else str(key))
    return leaves


def write_value(value: Any) -> str:
    """Return a setting as YAML and JSON both write it; text as it is.

    >>> write_value(True), write_value("auto"), write_value({"a": None})
    ('true', 'auto', '{"a": null}')
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _flags_of(config: Mapping[str, Any]) -> Iterator[str]:
    defaults = {
        item.name: item.default_factory()
        if item.default_factory is not dataclasses.MISSING
        else item.default
        for item in dataclasses.fields(PrepareConfig)
        if item.name not in _OF_THE_RUN
    }
    for name, value in config.items():
        default = defaults.get(name)
        if name in _OF_THE_RUN or value == (
            list(default) if isinstance(default, tuple) else default
        ):
            continue
        if isinstance(value, bool):
            yield f"--{name}" if value else f"--no_{name}"
        else:
            yield f"--{name}"
            yield from map(write_value, value) if isinstance(value, list) else [write_value(value)]
