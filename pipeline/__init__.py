"""Chat logs to token rows that are exactly what the server sees, for context-frozen training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.examples.example import TrainingExample, load_examples, save_examples
    from pipeline.job.prepare import prepare
    from pipeline.rows.example_tokenizer import ExampleTokenizer
    from pipeline.sets.load import load
    from pipeline.train.collate import ContextFrozenCollator
    from pipeline.train.feed import DeviceFeeder
    from pipeline.train.sampling import ContextGroupSampler, LengthBatchSampler
    from pipeline.train.step import context_frozen_loss
    from pipeline.train.token_rows import rows_as_id_pairs

_HOMES = {
    "ContextFrozenCollator": "pipeline.train.collate",
    "ContextGroupSampler": "pipeline.train.sampling",
    "DeviceFeeder": "pipeline.train.feed",
    "ExampleTokenizer": "pipeline.rows.example_tokenizer",
    "LengthBatchSampler": "pipeline.train.sampling",
    "TrainingExample": "pipeline.examples.example",
    "context_frozen_loss": "pipeline.train.step",
    "load": "pipeline.sets.load",
    "load_examples": "pipeline.examples.example",
    "prepare": "pipeline.job.prepare",
    "rows_as_id_pairs": "pipeline.train.token_rows",
    "save_examples": "pipeline.examples.example",
}

__all__ = [
    "ContextFrozenCollator",
    "ContextGroupSampler",
    "DeviceFeeder",
    "ExampleTokenizer",
    "LengthBatchSampler",
    "TrainingExample",
    "context_frozen_loss",
    "load",
    "load_examples",
    "prepare",
    "rows_as_id_pairs",
    "save_examples",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
