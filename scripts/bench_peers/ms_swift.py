"""ms-swift: `EncodePreprocessor` with its ``qwen2_5`` template, loss on the last turn, then a save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scripts.bench_peers.workload import Job, Made, count_rows, load_conversations

PACKAGE, DISTRIBUTION = "swift", "ms-swift"


def load(job: Job) -> Callable[[], Made]:
    """Load the tokenizer and the template; return the job."""
    from swift.dataset import EncodePreprocessor
    from swift.model import get_processor
    from swift.template import get_template

    processor = get_processor(job.tokenizer, model_type="qwen2")
    template = get_template(
        processor,
        template_type="qwen2_5",
        max_length=job.max_len,
        loss_scale="last_round",
    )
    template.set_mode("train")

    def make() -> Made:
        conversations = load_conversations(job.input)
        rows = EncodePreprocessor(template=template)(conversations, num_proc=job.num_proc)
        rows.save_to_disk(str(Path(job.work) / "out"))
        return count_rows(rows)

    return make
