"""Chat logs to token rows that are exactly what the server sees, for context-frozen training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.examples import TrainingExample, load_examples, save_examples
    from pipeline.job import prepare
    from pipeline.saved import load
    from pipeline.tokenize import ExampleTokenizer

_HOMES = {
    "ExampleTokenizer": "pipeline.tokenize",
    "TrainingExample": "pipeline.examples",
    "load": "pipeline.saved",
    "load_examples": "pipeline.examples",
    "prepare": "pipeline.job",
    "save_examples": "pipeline.examples",
}

__all__ = [
    "ExampleTokenizer",
    "TrainingExample",
    "load",
    "load_examples",
    "prepare",
    "save_examples",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
