"""Which tokens a batch trains, read from the tensors that a model gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Continuation = tuple[int, ...]


def trained_runs(batch: Mapping[str, Any]) -> list[Continuation]:
    """Return each run of trained tokens in a batch [B, T], by the rule of the models' own loss.

    Position ``t`` is predicted from ``t - 1``, so column 0 is never trained.
    """
    runs: list[Continuation] = []
    for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        run: list[int] = []
        for token, label in zip(ids[1:], labels[1:], strict=True):
            if label != -100:
                assert label == token
                run.append(token)
            elif run:
                runs.append(tuple(run))
                run = []
        runs += [tuple(run)] if run else []
    return runs


def continuations_of(rows: Iterable[Mapping[str, Any]]) -> list[Continuation]:
    """Return what ought to be trained: each row's tokens from the boundary on."""
    return [tuple(row["input_ids"][row["context_len"] :]) for row in rows]
