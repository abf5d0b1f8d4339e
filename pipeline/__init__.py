"""Chat logs to token rows that are exactly what the server sees, for context-frozen training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.collate import ContextFrozenCollator
    from pipeline.examples import TrainingExample, load_examples, save_examples
    from pipeline.feed import DeviceFeeder
    from pipeline.frozen.step import context_frozen_loss
    from pipeline.job.prepare import prepare
    from pipeline.sampling import ContextGroupSampler, LengthBatchSampler
    from pipeline.saved import load
    from pipeline.token_rows import rows_as_id_pairs
    from pipeline.tokenize import ExampleTokenizer

_HOMES = {
    "ContextFrozenCollator": "pipeline.collate",
    "ContextGroupSampler": "pipeline.sampling",
    "DeviceFeeder": "pipeline.feed",
    "ExampleTokenizer": "pipeline.tokenize",
    "LengthBatchSampler": "pipeline.sampling",
    "TrainingExample": "pipeline.examples",
    "context_frozen_loss": "pipeline.frozen.step",
    "load": "pipeline.saved",
    "load_examples": "pipeline.examples",
    "prepare": "pipeline.job.prepare",
    "rows_as_id_pairs": "pipeline.token_rows",
    "save_examples": "pipeline.examples",
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
