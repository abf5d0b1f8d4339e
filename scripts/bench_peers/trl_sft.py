"""TRL: what `SFTTrainer` does to a prompt-completion data set in its constructor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.bench_peers.workload import KEYS, Job, Made, count_rows

PACKAGE = DISTRIBUTION = "trl"


def load(job: Job) -> Callable[[], Made]:
    """Load the tokenizer and a model of a few weights; return the job."""
    import datasets
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads))
    config = SFTConfig(
        output_dir=str(Path(job.work) / "trainer"),
        max_length=None,
        completion_only_loss=True,
        packing=False,
        dataset_num_proc=job.map_processes,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )

    def reshape(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        messages, indices, continuations = (batch[key] for key in KEYS)
        return {
            "prompt": [talk[:index] for talk, index in zip(messages, indices, strict=True)],
            "completion": [[{"role": "assistant", "content": text}] for text in continuations],
        }

    def make() -> Made:
        lines = datasets.load_dataset("json", data_files=job.input, split="train")
        pairs = lines.map(reshape, batched=True, batch_size=100, remove_columns=lines.column_names)
        trainer = SFTTrainer(
            model=model, args=config, train_dataset=pairs, processing_class=tokenizer
        )
        return count_rows(trainer.train_dataset)

    return make
