"""The straightforward way: load, map one example at a time, encode twice, save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.bench_peers.workload import KEYS, Job, Made, count_rows

PACKAGE = DISTRIBUTION = "datasets"


def load(job: Job) -> Callable[[], Made]:
    """Load the tokenizer; return the job."""
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)

    def tokenize(example: dict[str, Any]) -> dict[str, Any]:
        context = tokenizer.apply_chat_template(
            example["messages"][: example["decision_idx"]],
            tokenize=False,
            add_generation_prompt=True,
        )
        context_ids = tokenizer.encode(context, add_special_tokens=False)
        ids = context_ids + tokenizer.encode(example["continuation"], add_special_tokens=False)
        return {"input_ids": ids, "context_len": len(context_ids), "total_len": len(ids)}

    def make() -> Made:
        lines = datasets.load_dataset("json", data_files=job.input, split="train")
        rows = lines.map(tokenize, num_proc=job.map_processes, remove_columns=list(KEYS))
        rows.save_to_disk(str(Path(job.work) / "out"))
        return count_rows(rows)

    return make
