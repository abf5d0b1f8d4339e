"""Mutated lines of every shape through the whole job: no crash, no hang, no line unaccounted for.

``python scripts/fuzz_lines.py --lines 100000 --seed 1``: the same seed gives the same lines. Each
line is a good one that was changed once to three times: types, nesting, keys, unicode, sizes, bytes.
A last file holds rows merged of two shapes, whose texts say of themselves whether they may be
trained, and foreign messages, whose words must be in the prompt. Ends with 1 where the job broke a
promise; what it rejected is counted by code.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoTokenizer

from pipeline.job.prepare import prepare
from pipeline.types import REJECT_CODES

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.mixed_rows import MARKED, forbidden_in, merge_rows

TOKENIZER = Path(__file__).resolve().parents[1] / "configs" / "tokenizer"

_MARKED_FILE = "marked.jsonl"

_USER = {"role": "user", "content": "What is 2+2?"}
_ANSWER = {"role": "assistant", "content": "4"}
_CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'},
}
_TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}},
}
SHAPES: tuple[dict[str, Any], ...] = (
    {"id": "own", "context": "2+2=", "continuation": "4", "reason": "sum", "memories": ["m"]},
    {"id": "chat", "messages": [_USER, _ANSWER], "decision_idx": 1, "continuation": "4."},
    {"id": "many", "messages": [_USER], "continuations": ["4", "four"], "weight": 0.5},
    {
        "id": "tools",
        "messages": [{"role": "system", "content": "Add."}, _USER],
        "tools": [_TOOL],
        "continuation": {"role": "assistant", "content": None, "tool_calls": [_CALL]},
        "chat_template_kwargs": {"enable_thinking": False},
    },
    {
        "id": "pair",
        "prompt": [_USER],
        "chosen": [_ANSWER],
        "rejected": [{"role": "assistant", "content": "5"}],
    },
    {"id": "trl", "prompt": [_USER], "completion": [_ANSWER]},
    {
        "id": "log",
        "request": {"messages": [_USER]},
        "response": {"choices": [{"message": _ANSWER}]},
    },
    {"conversations": [{"from": "human", "value": "2+2"}, {"from": "gpt", "value": "4"}]},
    {"instruction": "Add.", "input": "2 2", "output": "4"},
    {
        "id": "parts",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, _ANSWER],
    },
)
"""One good line of each shape."""

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**40, 1.0, -0.0, 1e308, 5e-324),
    *(
        "",
        " ",
        "x",
        "null",
        "1",
        "\x00",
        "\x1b[31m",
        "\ud800",
        "\u202ea",
        "e\u0301",
        "👩‍👧",
        "\ufeff",
    ),
    *("<|im_end|>", "<|im_start|>user\n", "</think>", "<think>", "{{ 7 * 7 }}", "<script>"),
    *([], {}, [[]], [None], {"": None}, [{}], {"role": "user"}, {"role": "tool", "content": "r"}),
    *("a" * 100_000, ["x"] * 1000, [1] * 3, {"type": "image_url", "image_url": {"url": "/etc/x"}}),
)
_KEYS = (
    *("id", "messages", "context", "continuation", "decision_idx", "tools", "weight", "memories"),
    *("role", "content", "tool_calls", "reasoning", "continuation_ids", "context_ids", "rejected"),
    *("prompt", "completion", "conversations", "chosen", "", "__proto__", "chat_template_kwargs"),
    *("system", "functions", "loss_mask", "train", "finish_reason", "better", "output", "parts"),
)
_FOREIGN: tuple[dict[str, Any], ...] = (
    {"role": "user", "parts": [{"type": "text", "text": "WORDS"}]},
    {"role": "user", "content": "", "parts": [{"type": "text", "content": "WORDS"}]},
    {"role": "user", "text": "WORDS"},
    {"role": "user", "message": "WORDS"},
    {"role": "human", "content": "WORDS"},
    {"role": "User", "content": "WORDS"},
    {"type": "human", "content": "WORDS"},
    {"from": "human", "value": "WORDS"},
    {"role": "user", "content": [{"type": "text", "text": "WORDS"}]},
    {"role": "user", "content": "WORDS", "name": "u", "created": 1.5},
)
"""The user's words as frameworks keep them."""


def mutate_lines(shape: dict[str, Any], count: int, seed: int) -> Iterator[bytes]:
    """Yield ``count`` lines of one shape, without line ends: the first is good, the rest is mutated."""
    chance = random.Random(seed)
    yield json.dumps(shape).encode()
    for number in range(count - 1):
        value: Any = copy.deepcopy(shape)
        if isinstance(value.get("id"), str):
            value["id"] = f"{value['id']}{number}"
        for _ in range(chance.randint(0, 3)):
            value = _mutate_value(value, chance)
        line = json.dumps(value, ensure_ascii=chance.random() < 0.5)
        data = line.encode("utf-8", "surrogatepass")
        yield (_mutate_bytes(data, chance) if chance.random() < 0.3 else data).replace(b"\n", b"")


def _mutate_value(root: Any, chance: random.Random) -> Any:
    places = list(_places_of(root))
    if not places:
        return chance.choice(_VALUES)
    parent, key = chance.choice(places)
    match chance.randrange(6):
        case 0 | 1:
            parent[key] = copy.deepcopy(chance.choice(_VALUES))
        case 2:
            del parent[key]
        case 3 if isinstance(parent, dict):
            parent[chance.choice(_KEYS)] = parent.pop(key)
        case 3:
            parent.insert(chance.randint(0, len(parent)), copy.deepcopy(chance.choice(_VALUES)))
        case 4:
            for _ in range(chance.choice((1, 2, 50))):
                parent[key] = [parent[key]]
        case _:
            parent[key] = copy.deepcopy(chance.choice(places)[0])
    return root


def _places_of(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container with every key or index that it has."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if not isinstance(each, (dict, list)):
            continue
        keys = list(each) if isinstance(each, dict) else range(len(each))
        for key in keys:
            yield each, key
            waiting.append(each[key])


def _mutate_bytes(line: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(line) + 1)
    match chance.randrange(7):
        case 0:
            return line[:at]
        case 1:
            return line[:at] + chance.randbytes(chance.randint(1, 4)) + line[at:]
        case 2:
            return line[:at] + line[at + chance.randint(1, 9) :]
        case 3:
            return line + line
        case 4:
            deep = chance.choice((190, 250, 3000))
            return line.replace(b'": ', b'": ' + b"[" * deep + b"]" * deep + b', "n": ', 1)
        case 5:
            return line.replace(b'":', chance.choice((b'": NaN, "n":', b'" :', b'": 1, "id":')), 1)
        case _:
            end = min(len(line), at + chance.randint(1, 40))
            return line[:at] + line[at:end] * 2 + line[end:]


def find_broken_promises(count: int, seed: int, folder: Path, num_proc: int) -> list[str]:
    """Run the job over about ``count`` lines, a file per shape; return what it broke, a sentence each."""
    (folder / "input").mkdir()
    expected: set[tuple[str, int]] = set()
    for place, shape in enumerate(SHAPES):
        lines = list(mutate_lines(shape, -(-count // len(SHAPES)), seed + place))
        file = folder / "input" / f"{place:02d}.jsonl"
        file.write_bytes(b"".join(line + b"\n" for line in lines))
        expected |= {(file.name, at) for at, line in enumerate(lines, 1) if not _is_blank(line)}
    marked = list(mark_lines(-(-count // len(SHAPES)), seed))
    file = folder / "input" / _MARKED_FILE
    file.write_text("".join(json.dumps(row) + "\n" for row in marked), encoding="utf-8")
    expected |= {(file.name, at) for at in range(1, len(marked) + 1)}
    prepared = prepare(
        input=str(folder / "input"),
        tokenizer=str(TOKENIZER),
        output=str(folder / "set"),
        max_reject_rate=1.0,
        num_proc=num_proc,
        quiet=True,
    )
    rejects = [
        json.loads(line) for line in (prepared.output / "rejects.jsonl").open(encoding="utf-8")
    ]
    rows = datasets.load_from_disk(str(prepared.output))["train"]
    sources = (source.rpartition(":") for source in rows["source"])
    seen = {(file, int(line)) for file, _, line in sources}
    seen |= {(reject["file"], reject["line"]) for reject in rejects}
    broken = list(itertools.islice(find_wrong_targets(marked, _MARKED_FILE, rows.to_list()), 10))
    if missing := sorted(expected - seen):
        broken.append(f"{len(missing)} lines are no row and no reject, first {missing[0]}")
    if invented := sorted(seen - expected):
        broken.append(f"{len(invented)} rows or rejects are of no line, first {invented[0]}")
    if unknown := {reject["code"] for reject in rejects} - REJECT_CODES:
        broken.append(f"codes outside the closed set: {sorted(unknown)}")
    if len(rows) + len(rejects) != prepared.counts["points"]:
        broken.append(f"counts do not add up: {prepared.counts}")
    print(f"{len(rows)} rows, {len(rejects)} rejects", file=sys.stderr)
    for code, number in Counter(reject["code"] for reject in rejects).most_common():
        print(f"  {code}: {number}", file=sys.stderr)
    return broken


def mark_lines(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield rows whose texts say what they are for: merged of two shapes, or with foreign messages."""
    chance = random.Random(seed)
    for number in range(count):
        if chance.random() < 0.3:
            messages = [copy.deepcopy(chance.choice(_FOREIGN)), {**_ANSWER, "content": "ANSWER f"}]
            yield {"id": f"foreign{number}", "messages": messages}
            continue
        row = merge_rows(chance.choice(MARKED), chance.choice(MARKED), chance)
        yield {**row, "id": f"mixed{number}"} if "id" in row else row


def find_wrong_targets(
    marked: list[dict[str, Any]], file: str, rows: Iterable[dict[str, Any]]
) -> Iterator[str]:
    """Yield a sentence for each row of ``file`` that trains what it must not, or lost the user's words."""
    tokenizer = AutoTokenizer.from_pretrained(str(TOKENIZER))
    for row in rows:
        place, _, line = row["source"].rpartition(":")
        if place != file:
            continue
        given = marked[int(line) - 1]
        boundary = row["context_len"]
        prompt = tokenizer.decode(row["input_ids"][:boundary])
        target = tokenizer.decode(row["input_ids"][boundary:])
        # A message's own reasoning is a target where it stands as reasoning.
        answer = target.rpartition("</think>")[2]
        if wrong := sorted(text for text in forbidden_in(given) if text in answer):
            yield f"{row['source']}: trains {wrong[0]!r}: {target!r}"
        if "WORDS" in str(given) and "WORDS" not in prompt:
            yield f"{row['source']}: the user's words are not in the prompt {prompt!r}"


def _is_blank(line: bytes) -> bool:
    return not line or line.isspace()


def main() -> int:
    """Run the fuzz; return 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--num_proc", type=int, default=2)
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        broken = find_broken_promises(options.lines, options.seed, Path(folder), options.num_proc)
    print("\n".join(broken) or f"{options.lines} lines, seed {options.seed}: all accounted for")
    print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
