"""What every contender reads and reports, and two makers of workloads.

Imported under the interpreters of the peers too, so it needs nothing that is not there: the
standard library at once, `datasets` and `pyarrow` where a function uses them.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEYS = ("messages", "decision_idx", "continuation")
"""The fields that contenders read of a line, besides its ``id``."""

_TEXT = (
    "the server renders a prompt before it answers and the trainer must see those very tokens "
    "naïve café für Größe да нет 模型 看到 日本語 🙂 🚀 def return {} [] () 42 3.14 0x1f =="
)


@dataclass(frozen=True)
class Job:
    """One run: JSONL ``input`` and ``tokenizer`` folder; all that is written goes under ``work``.

    ``settings`` are more settings of the contender, as its column in ``bench_prepare`` names them.
    """

    input: str
    tokenizer: str
    work: str
    num_proc: int = 1
    max_len: int = 131_072
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def map_processes(self) -> int | None:
        """``num_proc`` as ``Dataset.map`` wants it: None for this process."""
        return self.num_proc if self.num_proc > 1 else None


@dataclass(frozen=True)
class Made:
    """What a run made."""

    rows: int
    tokens: int


def read_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file, plain or ``.gz``."""
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def conversation_of(line: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the context and, as the last turn, the continuation: what the peers train on."""
    answer = {"role": "assistant", "content": line["continuation"]}
    return [*line["messages"][: line["decision_idx"]], answer]


def load_conversations(path: str) -> Any:
    """Return a `datasets.Dataset` of ``messages`` alone: each line's `conversation_of`."""
    import datasets

    lines = datasets.load_dataset("json", data_files=path, split="train")

    def reshape(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = zip(*(batch[key] for key in KEYS), strict=True)
        return {"messages": [conversation_of(dict(zip(KEYS, row, strict=True))) for row in rows]}

    return lines.map(reshape, batched=True, batch_size=100, remove_columns=lines.column_names)


def count_rows(rows: Any) -> Made:
    """Return what a `datasets.Dataset` with ``input_ids`` holds."""
    import pyarrow.compute as pc

    tokens = pc.sum(pc.list_value_length(rows.data.column("input_ids"))).as_py()
    return Made(len(rows), tokens or 0)


def write_small_workload(path: Path, lines: int = 64) -> Path:
    """Write a deterministic workload of short conversations in several scripts; return its path."""
    dice, words = random.Random(0), _TEXT.split()

    def text(most: int) -> str:
        return " ".join(dice.choices(words, k=dice.randint(3, most)))

    with path.open("w", encoding="utf-8") as file:
        for number in range(lines):
            turns = dice.randint(1, 4)
            messages = [{"role": "system", "content": text(12)}] if number % 3 == 0 else []
            for _ in range(turns):
                messages.append({"role": "user", "content": text(60)})
                messages.append({"role": "assistant", "content": text(120)})
            line = {
                "id": f"small-{number}",
                "messages": messages,
                "decision_idx": len(messages) - 1,
                "continuation": text(80),
                "reason": text(10),
                "memories": [text(6)] * (number % 2),
            }
            file.write(json.dumps(line, ensure_ascii=bool(number % 2)) + "\n")
    return path


def write_plain_lines(source: str | Path, path: Path) -> Path:
    """Write lines that every contender can read, from logs of ``messages`` alone; return the path.

    Each assistant message with something before it becomes a decision point with its own text.
    Messages keep their role and text; tool calls become text, because the peers disagree on them.
    """
    with path.open("w", encoding="utf-8") as file:
        for number, line in enumerate(read_lines(source)):
            messages = [_flatten(message) for message in line["messages"]]
            for index, message in enumerate(messages):
                if index and message["role"] == "assistant" and message["content"].strip():
                    row = {
                        "id": f"{number}-{index}",
                        "messages": messages,
                        "decision_idx": index,
                        "continuation": message["content"],
                    }
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def _flatten(message: dict[str, Any]) -> dict[str, str]:
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
    texts = [content, *(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)]
    return {"role": message["role"], "content": "\n".join(filter(None, texts))}
