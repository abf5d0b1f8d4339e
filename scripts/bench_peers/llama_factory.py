"""LLaMA-Factory: `get_dataset` for supervised tuning with its ``qwen`` template, then a save.

Its data must be a file of conversations named in a ``dataset_info.json``; both are written before
the clock starts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from scripts.bench_peers.workload import Job, Made, conversation_of, count_rows, read_lines

PACKAGE = DISTRIBUTION = "llamafactory"

_DATA_SET = {
    "file_name": "conversations.jsonl",
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
        "function_tag": "function_call",
        "system_tag": "system",
    },
}


def load(job: Job) -> Callable[[], Made]:
    """Load the tokenizer and the template, and write the data set; return the job."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import AutoTokenizer, Seq2SeqTrainingArguments

    work = Path(job.work)
    with (work / _DATA_SET["file_name"]).open("w", encoding="utf-8") as file:
        for line in read_lines(job.input):
            file.write(json.dumps({"messages": conversation_of(line)}) + "\n")
    (work / "dataset_info.json").write_text(json.dumps({"bench": _DATA_SET}), encoding="utf-8")
    data = DataArguments(
        dataset="bench",
        dataset_dir=job.work,
        template="qwen",
        cutoff_len=job.max_len,
        mask_history=True,
        overwrite_cache=True,
        preprocessing_num_workers=job.map_processes,
    )
    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)
    template = get_template_and_fix_tokenizer(tokenizer, data)
    model = ModelArguments(model_name_or_path=job.tokenizer, cache_dir=str(work / "cache"))
    training = Seq2SeqTrainingArguments(
        output_dir=str(work / "trainer"), use_cpu=True, report_to="none"
    )

    def make() -> Made:
        rows = get_dataset(template, model, data, training, "sft", tokenizer)["train_dataset"]
        rows.save_to_disk(str(work / "out"))
        return count_rows(rows)

    return make
