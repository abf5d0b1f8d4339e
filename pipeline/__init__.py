"""Chat logs to token rows that are exactly what the server sees, for context-frozen training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from pipeline.examples.example import TrainingExample, load_examples, save_examples
    from pipeline.job.prepare import prepare
    from pipeline.job.save_set import save_set
    from pipeline.lines.dataset import load_lines
    from pipeline.rows.example_tokenizer import ExampleTokenizer
    from pipeline.rows.row_map import RowMap
    from pipeline.sets.load import load
    from pipeline.train.collate import ContextFrozenCollator
    from pipeline.train.conversations import ConversationSampler
    from pipeline.train.feed import DeviceFeeder
    from pipeline.train.sampling import ContextGroupSampler, LengthBatchSampler
    from pipeline.train.step import context_frozen_loss, continuation_log_probs, frozen_losses
    from pipeline.train.token_rows import rows_as_id_pairs

_HOMES = {
    "RowMap": "pipeline.rows.row_map",
    "load_lines": "pipeline.lines.dataset",
    "save_set": "pipeline.job.save_set",
    "ContextFrozenCollator": "pipeline.train.collate",
    "ContextGroupSampler": "pipeline.train.sampling",
    "ConversationSampler": "pipeline.train.conversations",
    "DeviceFeeder": "pipeline.train.feed",
    "ExampleTokenizer": "pipeline.rows.example_tokenizer",
    "LengthBatchSampler": "pipeline.train.sampling",
    "TrainingExample": "pipeline.examples.example",
    "context_frozen_loss": "pipeline.train.step",
    "continuation_log_probs": "pipeline.train.step",
    "frozen_losses": "pipeline.train.step",
    "load": "pipeline.sets.load",
    "load_examples": "pipeline.examples.example",
    "prepare": "pipeline.job.prepare",
    "rows_as_id_pairs": "pipeline.train.token_rows",
    "save_examples": "pipeline.examples.example",
}

__all__ = [
    "ContextFrozenCollator",
    "ContextGroupSampler",
    "ConversationSampler",
    "DeviceFeeder",
    "ExampleTokenizer",
    "LengthBatchSampler",
    "RowMap",
    "TrainingExample",
    "context_frozen_loss",
    "continuation_log_probs",
    "frozen_losses",
    "load",
    "load_examples",
    "load_lines",
    "prepare",
    "rows_as_id_pairs",
    "save_examples",
    "save_set",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
