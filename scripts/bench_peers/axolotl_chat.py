"""axolotl: its ``chat_template`` strategy with the tokenizer's own template, then a save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scripts.bench_peers.workload import Job, Made, count_rows, load_conversations

PACKAGE = DISTRIBUTION = "axolotl"


def load(job: Job) -> Callable[[], Made]:
    """Load the tokenizer and the strategy; return the job."""
    from axolotl.datasets import TokenizedPromptDataset
    from axolotl.prompt_strategies.chat_template import load as load_strategy
    from axolotl.utils.dict import DictDefault
    from transformers import AutoTokenizer

    template = {"chat_template": "tokenizer_default"}
    strategy = load_strategy(
        AutoTokenizer.from_pretrained(job.tokenizer),
        DictDefault({"train_on_inputs": False, "sequence_len": job.max_len, **template}),
        DictDefault(
            {
                "field_messages": "messages",
                "roles_to_train": ["assistant"],
                "train_on_eos": "turn",
                **template,
            }
        ),
    )

    def make() -> Made:
        conversations = load_conversations(job.input)
        rows = TokenizedPromptDataset(strategy, conversations, process_count=job.num_proc)
        rows.save_to_disk(str(Path(job.work) / "out"))
        return count_rows(rows)

    return make
