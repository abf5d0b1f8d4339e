"""renderers: `build_training_sample` of its default renderer, in memory only."""

from __future__ import annotations

from collections.abc import Callable

from scripts.bench_peers.workload import Job, Made, conversation_of, read_lines

PACKAGE = DISTRIBUTION = "renderers"


def load(job: Job) -> Callable[[], Made]:
    """Load the tokenizer and the renderer; return the job."""
    from renderers import DefaultRendererConfig, create_renderer
    from renderers.base import build_training_sample
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.tokenizer)
    renderer = create_renderer(tokenizer, DefaultRendererConfig())

    def make() -> Made:
        lengths = []
        for line in read_lines(job.input):
            sample = build_training_sample(
                renderer,
                conversation_of(line),
                role_to_mask=lambda message: message["role"] == "assistant",
            )
            lengths.append(len(sample.token_ids))
        return Made(len(lengths), sum(lengths))

    return make
