"""Measure how the cost grows: with ten times the tokens, and with more decision points.

    python scripts/bench_growth.py --input w1.jsonl --tokenizer FOLDER            # tokens x 10
    python scripts/bench_growth.py --conversations w2_conv.jsonl --tokenizer FOLDER

``--input`` runs the whole job on the first tenth of the lines and on all of them, each run in a
process of its own, as in ``bench_prepare.py``. ``--conversations`` takes logs with many assistant
messages and times rendering and encoding alone, `RowBuilder.build`, of N decision points spread
over each: the last one always, so that the longest context is the same for every N. Each time has
a row builder of its own, which has seen another conversation and none of these.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from scripts.bench_peers.measure import ROOT, Run, measure
from scripts.bench_peers.workload import Job, read_lines

POINTS = (1, 2, 5, 10, 20, 40)
CONVERSATIONS = 6

Texts = list[dict[str, str]]


def cut_tenth(source: Path, path: Path) -> Path:
    """Write the first tenth of the lines of ``source`` to ``path``; return it."""
    with source.open("rb") as file:
        lines = sum(1 for _ in file)
        file.seek(0)
        with path.open("wb") as out:
            out.writelines(islice(file, max(1, lines // 10)))
    return path


def measure_tokens(options: argparse.Namespace) -> dict[str, list[Run]]:
    """Return the runs of ``prepare`` on a tenth of the input and on all of it, in turn."""
    runs: dict[str, list[Run]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-growth-") as folder:
        tenth = cut_tenth(options.input, Path(folder) / "tenth.jsonl")
        for _ in range(options.rounds):
            for name, path in (("tenth", tenth), ("all", options.input.absolute())):
                job = Job(
                    str(path),
                    str(options.tokenizer.absolute()),
                    folder,
                    options.num_proc,
                    options.max_len,
                    {"encoder": options.encoder},
                )
                runs[name].append(measure("ours", job, sys.executable, Path(folder)))
    return runs


def print_tokens(runs: dict[str, list[Run]], console: Console) -> None:
    """Print time and memory of both sizes and how they grew."""
    table = Table(title="tokens x 10", title_justify="left")
    for name in ("lines", "tokens", "seconds", "PSS MiB", "RSS MiB"):
        table.add_column(name, justify="right")
    figures = []
    for measured in runs.values():
        seconds = median(run.seconds for run in measured)
        pss = max(run.peak_pss for run in measured) / 2**20
        rss = max(run.max_rss for run in measured) / 2**20
        figures.append((measured[0].rows, measured[0].tokens, seconds, pss, rss))
    for rows, tokens, seconds, pss, rss in figures:
        table.add_row(f"{rows:,}", f"{tokens:,}", f"{seconds:.2f}", f"{pss:.0f}", f"{rss:.0f}")
    growth = [large / small for small, large in zip(*figures, strict=True)]
    table.add_row(*(f"x {factor:.2f}" for factor in growth), style="bold")
    console.print(table)


def read_conversations(path: Path, count: int) -> list[Texts]:
    """Return the first ``count`` conversations with an assistant message for each decision point."""
    found: list[Texts] = []
    for line in read_lines(path):
        messages = [
            {"role": message["role"], "content": message["content"]} for message in line["messages"]
        ]
        if len(assistant_places(messages)) >= max(POINTS):
            found.append(messages)
        if len(found) == count:
            break
    return found


def assistant_places(messages: Texts) -> list[int]:
    """Return the indices of the assistant messages that something stands before."""
    return [at for at, message in enumerate(messages) if at and message["role"] == "assistant"]


def spread_points(messages: Texts, name: str, count: int) -> list[Any]:
    """Return ``count`` decision points over a conversation, the last assistant message among them."""
    from pipeline.examples.decisions import DecisionPoint
    from pipeline.examples.example import TrainingExample

    places = assistant_places(messages)
    example = TrainingExample(name, messages=list(messages), decision_idx=places[-1])
    chosen = np.linspace(len(places) - 1, 0, count).round().astype(int)[::-1]
    return [
        DecisionPoint(example, places[place], messages[places[place]]["content"])
        for place in chosen
    ]


def measure_points(
    options: argparse.Namespace, conversations: Sequence[Texts]
) -> dict[int, list[tuple[float, int]]]:
    """Return seconds and tokens of each round, by decision points per conversation.

    The last conversation is what the row builder sees first.
    """
    from pipeline.config import config_from_mapping
    from pipeline.errors import Rejected
    from pipeline.rows.builder import RowBuilder

    config = config_from_mapping(
        {
            "input": "-",
            "output": "-",
            "tokenizer": str(options.tokenizer),
            "max_len": options.max_len,
            "encoder": options.encoder,
        },
        "bench_growth",
    )
    *timed, first = conversations
    times: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for _ in range(options.rounds):
        for count in POINTS:
            builder = RowBuilder(config)
            builder.settle(spread_points(first, "first", max(POINTS)))
            groups = [
                spread_points(messages, str(number), count) for number, messages in enumerate(timed)
            ]
            tokens = 0
            start = time.perf_counter()
            for points in groups:
                for row in builder.build(points):
                    if isinstance(row, Rejected):
                        raise row
                    tokens += row.total_len
            times[count].append((time.perf_counter() - start, tokens))
    return times


def print_points(times: dict[int, list[tuple[float, int]]], console: Console) -> None:
    """Print time by decision points, against one point per conversation."""
    table = Table(title="decision points per conversation", title_justify="left")
    for name in ("points", "tokens", "x tokens", "seconds", "x seconds"):
        table.add_column(name, justify="right")
    base_tokens = times[1][0][1]
    for count, measured in times.items():
        seconds = median(taken for taken, _ in measured)
        growth = median(
            taken / once for (taken, _), (once, _) in zip(measured, times[1], strict=True)
        )
        tokens = measured[0][1]
        table.add_row(
            str(count),
            f"{tokens:,}",
            f"{tokens / base_tokens:.1f}",
            f"{seconds:.3f}",
            f"{growth:.2f}",
        )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the measurements from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input", type=Path, help="JSONL of examples: tokens x 10")
    parser.add_argument("--conversations", type=Path, help="JSONL of long logs: decision points")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "configs" / "tokenizer")
    parser.add_argument("--encoder", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-proc", type=int, default=1)
    parser.add_argument("--max-len", type=int, default=131_072, help="most tokens of a row")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--folder", type=Path, help="where the runs may write; removed again")
    options = parser.parse_args(arguments)
    if not options.input and not options.conversations:
        parser.error("give --input, --conversations or both")
    console = Console()
    report: dict[str, Any] = {}
    if options.input:
        runs = measure_tokens(options)
        print_tokens(runs, console)
        report["tokens"] = {name: [asdict(run) for run in each] for name, each in runs.items()}
    if options.conversations:
        conversations = read_conversations(options.conversations, CONVERSATIONS + 1)
        if len(conversations) < 2:
            sys.exit(
                f"{options.conversations}: found {len(conversations)} conversations with "
                f"{max(POINTS)} assistant messages; expected two or more"
            )
        times = measure_points(options, conversations)
        print_points(times, console)
        report["points"] = times
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
