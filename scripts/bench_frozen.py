"""Time the frozen step against a full forward and backward, with its memory.

    python scripts/bench_frozen.py                         # a small random model
    python scripts/bench_frozen.py --model PATH            # a causal LM of your own
    python scripts/bench_frozen.py --model PATH --compare SET   # gradients, on rows of a saved set

K continuations follow one context, as when one decision point has several good answers. Each case
runs in a process of its own, in turn, so that its peak memory is its own; seconds are the fastest
of the rounds. On a CUDA card it runs there, in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict, load_from_disk
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from pipeline.train.collate import ContextFrozenCollator
from pipeline.train.feed import pick_device
from pipeline.train.step import context_frozen_loss

CASES = ("full", "split", "grouped")
MIN_CONTEXT = 256  # shorter contexts say little of the two gradients' distance
SMALL_MODEL = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 8192,
    "max_position_embeddings": 16_384,
}


def load_model(path: Path | None, device: torch.device) -> Any:
    """Return the causal LM at ``path``, or a small random one, ready to train."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    if path is None:
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL_MODEL), dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    return model.to(device).train()


def full_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Prompt-masked training: gradients go through the whole context."""
    return model(**batch, use_cache=False).loss


def build_step(case: str, model: Any, options: argparse.Namespace) -> Callable[[], None]:
    """Return a forward and backward pass of the case's layout."""
    random = np.random.default_rng(0)
    context = random.integers(3, model.config.vocab_size, options.context)
    rows = [
        {
            "input_ids": np.concatenate(
                [context, random.integers(3, model.config.vocab_size, options.continuation)]
            ),
            "context_len": options.context,
        }
        for _ in range(options.case_continuations)
    ]
    layout = "joined" if case == "full" else case
    batch: Any = ContextFrozenCollator(layout, device=model.device)(rows)
    loss_of = full_loss if case == "full" else context_frozen_loss

    def step() -> None:
        model.zero_grad(set_to_none=True)
        loss_of(model, batch).backward()
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return step


def read_peak(device: torch.device) -> int:
    """Return the most memory used so far, in bytes: the card's, or this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_case(options: argparse.Namespace) -> None:
    """Run one case in this process and print its figures as JSON."""
    device = pick_device()
    model = load_model(options.model, device)
    for parameter in model.parameters():  # the gradients belong to the model, not to the step
        parameter.grad = torch.zeros_like(parameter)
    before = read_peak(device)
    step = build_step(options.case, model, options)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": min(seconds), "bytes": read_peak(device) - before}))


def run_cases(options: argparse.Namespace) -> None:
    """Run every case in turn, ``--rounds`` times, and print them side by side."""
    found: dict[tuple[int, str], list[dict[str, float]]] = defaultdict(list)
    for _ in range(options.rounds):
        for count in options.continuations:
            for case in CASES:
                command = [sys.executable, __file__, "--case", case]
                command += ["--case-continuations", str(count), "--context", str(options.context)]
                command += ["--continuation", str(options.continuation)]
                command += ["--model", str(options.model)] if options.model else []
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{case}, K={count}: {done.stderr[-2000:]}")
                found[count, case].append(json.loads(done.stdout.splitlines()[-1]))
    print(
        f"K continuations of {options.continuation} tokens after one context of "
        f"{options.context}; {options.rounds} rounds, {pick_device()}"
    )
    for count in options.continuations:
        full_seconds = min(run["seconds"] for run in found[count, "full"])
        for case in CASES:
            seconds = min(run["seconds"] for run in found[count, case])
            memory = min(run["bytes"] for run in found[count, case]) / 2**20
            print(
                f"  K={count:<3} {case:8} {seconds:8.2f} s {full_seconds / seconds:6.1f} x "
                f"{memory:8.0f} MiB"
            )


def compare_gradients(options: argparse.Namespace) -> None:
    """Print how far the frozen gradient is from the prompt-masked one, by kind of weight."""
    device = pick_device()
    model = load_model(options.model, device).float().eval()  # no dropout in either
    loaded = load_from_disk(str(options.compare))
    rows = loaded["train"] if isinstance(loaded, DatasetDict) else loaded
    lengths = np.array([rows["context_len"][:], rows["total_len"][:]])
    fitting = np.flatnonzero((lengths[0] >= MIN_CONTEXT) & (lengths[1] <= options.context))
    chosen = np.random.default_rng(0).permutation(fitting)[: options.rows]
    examples = rows.with_format("numpy").select(chosen)
    gradients: list[dict[str, Tensor]] = []
    for layout, loss_of in (("joined", full_loss), ("split", context_frozen_loss)):
        model.zero_grad(set_to_none=True)
        for row in examples:
            batch: Any = ContextFrozenCollator(layout, device=device)([row])
            loss_of(model, batch).backward()
        gradients.append({name: weight.grad.flatten() for name, weight in model.named_parameters()})
    parts: dict[str, list[str]] = defaultdict(list)
    for name in gradients[0]:
        parts["all weights"].append(name)
        parts[name.split(".")[-2]].append(name)
    print(
        f"gradients of {len(chosen)} rows, {lengths[0][chosen].mean():.0f} context tokens "
        "on average: frozen against prompt-masked\n  cosine  norm ratio"
    )
    for part, names in parts.items():
        masked, frozen = (torch.cat([side[name] for name in names]) for side in gradients)
        cosine = nn.functional.cosine_similarity(masked, frozen, dim=0)
        print(f"  {cosine:6.3f} {frozen.norm() / masked.norm():11.3f}  {part}")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="folder of a causal LM")
    parser.add_argument(
        "--context", type=int, default=2048, help="context, or longest row compared, in tokens"
    )
    parser.add_argument("--continuation", type=int, default=128, help="continuation, in tokens")
    parser.add_argument("--continuations", type=int, nargs="+", default=[1, 4, 16], help="K")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compare", type=Path, help="a saved set: compare gradients on its rows")
    parser.add_argument("--rows", type=int, default=32, help="rows to compare gradients on")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--case-continuations", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        run_case(options)
    elif options.compare:
        compare_gradients(options)
    else:
        run_cases(options)


if __name__ == "__main__":
    main()
