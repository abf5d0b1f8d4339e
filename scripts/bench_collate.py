"""Time the collator against two common ways, and print the padding of the samplers.

    python scripts/bench_collate.py                    # 16 rows of about 8k tokens
    python scripts/bench_collate.py --set out/my-set   # and padding shares of a saved set

Times are medians of interleaved rounds and include reading the rows from the memory-mapped set.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from tokenizers import Tokenizer, models
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast

from pipeline.train.collate import ContextFrozenCollator
from pipeline.train.sampling import ContextGroupSampler, LengthBatchSampler
from pipeline.types import row_features

ROUNDS = 21
Way = Callable[[], dict[str, Any]]


def build_rows(folder: Path, count: int, tokens: int) -> Dataset:
    """Return a memory-mapped set of ``count`` rows of 95 to 100 % of ``tokens`` tokens."""
    random = np.random.default_rng(0)
    totals = random.integers(int(0.95 * tokens), tokens, count)
    contexts = totals - 150
    ids = [random.integers(0, 150_000, total, dtype=np.int32) for total in totals]
    text = {"string": "", "int32": 0, "float32": 1.0}
    columns: dict[str, Any] = {
        name: [[] if not hasattr(kind, "dtype") else text[kind.dtype]] * count
        for name, kind in row_features().items()
    }
    columns |= {
        "input_ids": ids,
        "labels": [
            np.where(np.arange(len(row)) < context, -100, row).astype(np.int32)
            for row, context in zip(ids, contexts, strict=True)
        ],
        "attention_mask": [np.ones(len(row), np.int8) for row in ids],
        "context_len": contexts,
        "total_len": totals,
        "context_hash": [str(row) for row in range(count)],
    }
    Dataset.from_dict(columns, features=row_features()).save_to_disk(folder)
    return load_from_disk(str(folder))  # type: ignore[return-value]


def pad_lists(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate as most training scripts do: Python lists, padded row by row."""
    longest = max(len(row["input_ids"]) for row in rows)
    fills = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        name: torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in rows])
        for name, fill in fills.items()
    }


def list_ways(rows: Dataset, indices: list[int]) -> dict[str, Way]:
    """Return what is timed: each way reads the same rows and makes one batch."""
    trained = rows.select_columns(["input_ids", "labels", "attention_mask"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>")),
        pad_token="<pad>",
    )
    seq2seq = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    ways: dict[str, Way] = {
        "lists, row by row": lambda: pad_lists([trained[index] for index in indices]),
        "DataCollatorForSeq2Seq": lambda: seq2seq(trained.__getitems__(indices)),
    }
    for layout in ("joined", "split", "grouped"):
        collate = ContextFrozenCollator(layout)
        for form in ("numpy", "arrow"):
            source = rows.with_format(form)
            ways[f"ours, {layout}, {form} rows"] = lambda collate=collate, source=source: collate(
                source[indices]
            )
    return ways


def time_ways(ways: dict[str, Way]) -> dict[str, float]:
    """Return the median milliseconds of each way, all measured in turn in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * median(measured[1:]) for name, measured in seconds.items()}


def print_padding(rows: Dataset, context_tokens: int) -> None:
    """Print the padded share of each phase for both samplers and for random batches."""
    samplers = [
        kind(rows, context_tokens=context_tokens)
        for kind in (LengthBatchSampler, ContextGroupSampler)
    ]
    print(
        f"\npadding of {len(rows)} rows at {context_tokens} + {samplers[0].continuation_tokens} "
        "tokens a batch\n  batches  context  continuation  both"
    )
    for sampler in samplers:
        share = sampler.padding_share()
        print(
            f"  {len(sampler):7} {share.context:8.1%} {share.continuation:13.1%} {share.both:5.1%}"
            f"  {type(sampler).__name__}"
        )
    context_len, total_len = (np.array(rows[name][:]) for name in ("context_len", "total_len"))
    order = np.random.default_rng(0).permutation(len(rows))
    batches = np.array_split(order, len(samplers[0]))
    frozen, live = context_len - 1, total_len - context_len + 1
    cells = [sum(len(b) * int(part[b].max()) for b in batches) for part in (frozen, live)]
    tokens = [int(part.sum()) for part in (frozen, live)]
    print(
        f"  {len(batches):7} {1 - tokens[0] / cells[0]:8.1%} {1 - tokens[1] / cells[1]:13.1%} "
        f"{1 - sum(tokens) / sum(cells):5.1%}  random, as many batches"
    )


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--set", type=Path, help="a saved set, for padding shares")
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a row")
    parser.add_argument("--context-tokens", type=int, default=32_768, help="budget of a batch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = build_rows(Path(folder), 8 * options.rows, options.tokens)
        milliseconds = time_ways(list_ways(rows, list(range(0, len(rows), 8))))
    print(f"a batch of {options.rows} x {options.tokens} tokens, median of {ROUNDS} rounds")
    slowest = milliseconds["lists, row by row"]
    for name, value in milliseconds.items():
        print(f"  {value:8.2f} ms {slowest / value:6.1f} x  {name}")
    if options.set:
        loaded = load_from_disk(str(options.set))
        rows = loaded["train"] if isinstance(loaded, DatasetDict) else loaded
        print_padding(rows, options.context_tokens)


if __name__ == "__main__":
    main()
