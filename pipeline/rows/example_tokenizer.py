"""One example at a time, for a notebook: the same rows as the batch job, as a tensor."""

from __future__ import annotations

import json
from typing import Any

import torch

from pipeline.config import RowSettings, read_settings
from pipeline.errors import Rejected
from pipeline.examples.decisions import find_decision_points
from pipeline.examples.example import TrainingExample, read_example
from pipeline.rows.builder import RowBuilder
from pipeline.types import Message


class ExampleTokenizer:
    """Prepares single examples with the tokenizer at ``model_path`` (a folder or a Hub name).

    ``settings`` are those of `pipeline.config.RowSettings` (``server``, ``overlong``, ...).

    >>> tokenizer = ExampleTokenizer("configs/tokenizer")
    >>> example = tokenizer.prepare_example(TrainingExample("a", "2+2=", "4"), device="cpu")
    >>> example.input_ids.shape == (example.total_len,)
    True
    """

    def __init__(self, model_path: str, **settings: Any) -> None:
        values = {**settings, "tokenizer": model_path}
        self._builder = RowBuilder(read_settings(RowSettings, values, "ExampleTokenizer"))

    def prepare_example(
        self,
        example: TrainingExample,
        max_len: int | None = None,
        device: str | torch.device | None = None,
    ) -> TrainingExample:
        """Fill ``input_ids`` (int64 [total_len]), ``context_len``, ``total_len``; return the example.

        ``max_len`` (tokens) replaces the setting; ``device`` defaults to the CUDA card where there
        is one, else the CPU. Raises `Rejected` where the example cannot become a row.
        """
        # The same strict reading as a line of the batch job.
        checked = read_example(json.dumps(example.to_dict(), ensure_ascii=False))
        row = self._builder.build(find_decision_points(checked)[:1], max_len)[0]
        if isinstance(row, Rejected):
            raise row
        place = device or ("cuda" if torch.cuda.is_available() else "cpu")
        example.input_ids = torch.from_numpy(row.input_ids).to(device=place, dtype=torch.int64)
        example.context_len, example.total_len = row.context_len, row.total_len
        return example

    def prepare_from_messages(
        self,
        example_id: str,
        messages: list[Message],
        decision_idx: int,
        better_response: str | Message,
        reason: str = "",
        memories: list[str] | None = None,
        max_len: int | None = None,
        device: str | torch.device | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> TrainingExample:
        """Return the example whose context is ``messages[:decision_idx]``, tokenized.

        ``tools`` and ``chat_template_kwargs`` are those of its request, as on a line of a file.
        See `prepare_example`.
        """
        example = TrainingExample(
            id=example_id,
            messages=messages,
            decision_idx=decision_idx,
            continuation=better_response,
            reason=reason,
            memories=memories or [],
            tools=tools,
            chat_template_kwargs=chat_template_kwargs or {},
        )
        return self.prepare_example(example, max_len, device)
