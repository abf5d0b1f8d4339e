"""Prepare, append, verify, load, train a step, delete, over and over: nothing may grow.

``python scripts/soak.py --minutes 30`` works in a temporary folder and prints one line a minute. It
ends with 1 where memory, open files or files on disk are more at the end than after the first rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.job.prepare import prepare
from pipeline.sets.load import load, verify

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = str(ROOT / "configs" / "tokenizer")

_WARM_UP_ROUNDS = 5
_MOST_GROWTH = 1.1


@dataclass(frozen=True, slots=True)
class Held:
    """What this process and its folders hold: resident bytes, open files, files on disk."""

    resident: int
    descriptors: int
    files: int


def measure_held(folder: Path) -> Held:
    """Return what is held now (Linux: ``/proc/self``)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    cache = Path.home() / ".cache" / "huggingface"
    files = sum(len(names) for root in (folder, cache) for _, _, names in os.walk(root))
    return Held(
        pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path("/proc/self/fd").iterdir())), files
    )


def run_round(folder: Path, number: int, rows: int, num_proc: int) -> None:
    """Make a set, append to it, check it, load it, train a step on it, and remove it."""
    output = folder / "set"
    for part in (0, 1):
        source = folder / f"part{part}.jsonl"
        source.write_text("".join(_write_line(number, part * rows + at) for at in range(rows)))
        settings: dict[str, Any] = {
            "input": str(source),
            "tokenizer": TOKENIZER,
            "output": str(output),
            "num_proc": num_proc,
            "append": bool(part),
        }
        prepare(quiet=True, **settings)
    findings = verify(output, tokenizer=TOKENIZER)
    if findings:
        raise RuntimeError(f"round {number}: {findings[0]}")
    _train_step(load(output, tokenizer=TOKENIZER)["train"])
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def _write_line(number: int, at: int) -> str:
    messages = [{"role": "user", "content": f"round {number}, question {at}: {'why? ' * 40}"}]
    example = {"id": f"{number}-{at}", "messages": messages, "continuation": f"answer {at}"}
    return json.dumps(example) + "\n"


def _train_step(rows: Any) -> None:
    import torch

    from pipeline.train.collate import ContextFrozenCollator

    batch: Any = ContextFrozenCollator(pad_token_id=0)([rows[at] for at in range(4)])
    embedding = torch.nn.Embedding(4096, 8)
    embedding(batch["input_ids"]).sum().backward()


def main() -> int:
    """Run rounds for the minutes asked for; return 1 where something grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--num_proc", type=int, default=2)
    options = parser.parse_args()
    begun = said = time.monotonic()
    number, first = 0, None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while time.monotonic() - begun < 60 * options.minutes or first is None:
            run_round(folder, number, options.rows, options.num_proc)
            number += 1
            held = measure_held(folder)
            if number == _WARM_UP_ROUNDS:
                first = held
            if time.monotonic() - said > 60:
                said = time.monotonic()
                print(f"{number} rounds, {said - begun:.0f} s: {held}", flush=True)
    print(f"{number} rounds; after {_WARM_UP_ROUNDS}: {first}; at the end: {held}")
    grew = (
        held.resident > first.resident * _MOST_GROWTH
        or held.descriptors > first.descriptors
        or held.files > first.files
    )
    return 1 if grew else 0


if __name__ == "__main__":
    sys.exit(main())
