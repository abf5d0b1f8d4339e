"""Time the whole preparation against other ways of doing it, on the same data and tokenizer.

    python scripts/bench_prepare.py                                     # a small smoke run
    python scripts/bench_prepare.py --input w1.jsonl --tokenizer FOLDER --json w1.json
    python scripts/bench_prepare.py ... --peer-python llamafactory=/venv/bin/python axolotl=...

Every run has a process of its own; a round runs each contender once, in turn, and ratios are taken
within a round. Seconds are those of the job without imports and without loading the tokenizer (for
ours also fastokens, which is built from it); "wall" is the whole process. Contenders that can use
several processes run with each of ``--num-proc``, and their best counts. What each one does is told
in ``scripts/bench_peers/``; read there too how a peer's rows differ from ours.

Lines must have ``messages``, ``decision_idx`` and a ``continuation`` of text. Lines with ``messages``
alone are rewritten first: every assistant message becomes a decision point.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from scripts.bench_peers.measure import ROOT, CaseFailed, Run, measure
from scripts.bench_peers.workload import (
    KEYS,
    Job,
    read_lines,
    write_plain_lines,
    write_small_workload,
)


@dataclass(frozen=True)
class Column:
    """A contender: a module of ``bench_peers``, its settings, and whether processes help it."""

    module: str
    settings: dict[str, Any] = field(default_factory=dict)
    takes_processes: bool = True


COLUMNS = {
    "ours": Column("ours"),
    "ours_tokenizers": Column("ours", {"encoder": "tokenizers"}),
    "straightforward": Column("straightforward"),
    "trl": Column("trl_sft"),
    "axolotl": Column("axolotl_chat"),
    "llamafactory": Column("llama_factory"),
    "swift": Column("ms_swift"),
    "renderers": Column("renderers_default", takes_processes=False),
    "bare_fastokens": Column("bare_encoder", {"encoder": "fastokens"}, takes_processes=False),
    "bare_tokenizers": Column("bare_encoder", {"encoder": "tokenizers"}, takes_processes=False),
}
REFERENCES = ("ours", "ours_tokenizers")
"""The columns that the others are compared with in the table."""

_FILE_WIDTH = 160


@dataclass(frozen=True)
class Case:
    """A column run with a number of processes."""

    column: str
    num_proc: int


@dataclass(frozen=True)
class Spread:
    """A median and the range around it."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        if self.most - self.least < 0.005:
            return f"{self.median:.2f}"
        return f"{self.median:.2f} ({self.least:.2f}–{self.most:.2f})"


@dataclass
class Results:
    """The runs of each case, one a round, and why a case has none."""

    runs: dict[Case, list[Run]] = field(default_factory=lambda: defaultdict(list))
    failures: dict[Case, str] = field(default_factory=dict)

    def best_case(self, column: str) -> Case | None:
        """Return the quickest case of a column, by the median of its seconds."""
        cases = [case for case in self.runs if case.column == column]
        return min(cases, key=lambda case: self.seconds(case).median, default=None)

    def seconds(self, case: Case) -> Spread:
        """Return the seconds of a case over the rounds."""
        return Spread.of([run.seconds for run in self.runs[case]])

    def times_longer(self, case: Case | None, reference: str) -> Spread | None:
        """Return how many times longer than the best of ``reference`` a case took in the same round."""
        best = self.best_case(reference)
        if case is None or best is None:
            return None
        pairs = zip(self.runs[case], self.runs[best], strict=True)
        return Spread.of([slow.seconds / fast.seconds for slow, fast in pairs])


def run_rounds(
    cases: Sequence[Case], job: Job, pythons: dict[str, str], rounds: int, console: Console
) -> Results:
    """Return the results of all rounds; a case that fails once is left out from then on."""
    results = Results()
    for number in range(1, rounds + 1):
        for case in cases:
            if case in results.failures:
                continue
            column = COLUMNS[case.column]
            label = f"round {number}: {case.column}, num_proc {case.num_proc}"
            one = Job(
                job.input, job.tokenizer, job.work, case.num_proc, job.max_len, column.settings
            )
            python = pythons.get(case.column, sys.executable)
            try:
                run = measure(column.module, one, python, Path(job.work))
            except CaseFailed as error:
                results.failures[case] = str(error)
                results.runs.pop(case, None)  # a half set of rounds has no pairs
                console.print(f"{label}: {error}", markup=False)
                continue
            results.runs[case].append(run)
            console.print(f"{label}: {run.seconds:.2f} s", markup=False)
    return results


def build_table(results: Results, cases: Sequence[Case], title: str) -> Table:
    """Return one line per case; the best of each column is bold."""
    table = Table(title=title, title_justify="left")
    table.add_column("contender")
    for name in ("procs", "seconds", "tokens", "Mtok/s", "wall s", "PSS MiB", "RSS MiB"):
        table.add_column(name, justify="right")
    for reference in REFERENCES:
        table.add_column(f"x {reference}", justify="right")
    for case in cases:
        if case in results.failures:
            continue
        runs, seconds = results.runs[case], results.seconds(case)
        ratios = [results.times_longer(case, reference) for reference in REFERENCES]
        table.add_row(
            case.column,
            str(case.num_proc),
            str(seconds),
            f"{runs[0].tokens:,}",
            f"{runs[0].tokens / seconds.median / 1e6:.2f}",
            f"{median(run.wall_seconds for run in runs):.1f}",
            f"{max(run.peak_pss for run in runs) / 2**20:.0f}",
            f"{max(run.max_rss for run in runs) / 2**20:.0f}",
            *("" if ratio is None else str(ratio) for ratio in ratios),
            style="bold" if case == results.best_case(case.column) else None,
        )
    return table


def describe_results(results: Results, columns: Sequence[str]) -> list[str]:
    """Return a line per aim that is not in the table, and per contender that did not run."""
    lines = [
        f"{name} takes {ratio} times as long as {limit}"
        for name in REFERENCES
        for limit in columns
        if limit.startswith("bare")
        and (ratio := results.times_longer(results.best_case(name), limit)) is not None
    ]
    reasons = {case.column: reason for case, reason in results.failures.items()}
    return [*lines, *(f"{name}: {reason}" for name, reason in reasons.items())]


def report_of(results: Results, cases: Sequence[Case]) -> dict[str, Any]:
    """Return the results as JSON: per column its runs, and its best case against the others'."""
    report: dict[str, Any] = {}
    names = list(dict.fromkeys(case.column for case in cases))
    for name in names:
        best = results.best_case(name)
        ratios = {other: results.times_longer(best, other) for other in names}
        report[name] = {
            "best_num_proc": best.num_proc if best else None,
            "times_longer_than": {
                other: asdict(ratio) for other, ratio in ratios.items() if ratio and other != name
            },
            "runs": {
                case.num_proc: [asdict(run) for run in results.runs[case]]
                for case in cases
                if case.column == name and case in results.runs
            },
            "failures": {
                case.num_proc: text
                for case, text in results.failures.items()
                if case.column == name
            },
        }
    return report


def describe_machine() -> dict[str, Any]:
    """Return what a reader needs to know of this machine to judge the seconds."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "load_before": os.getloadavg()[0],
    }


def prepare_input(source: Path | None, folder: Path) -> Path:
    """Return a file of lines that every contender can read, made in ``folder`` where it must be."""
    if source is None:
        return write_small_workload(folder / "small.jsonl")
    has_points = all(key in next(read_lines(source)) for key in KEYS)
    if has_points and source.suffix != ".gz":
        return source
    return write_plain_lines(source, folder / f"{source.name.partition('.')[0]}.jsonl")


def read_pythons(pairs: Sequence[str]) -> dict[str, str]:
    """Return the interpreter of each column that is named as NAME=PATH."""
    pythons: dict[str, str] = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if name not in COLUMNS or shutil.which(path) is None:
            sys.exit(
                f"--peer-python: found {pair!r}; expected NAME=PATH with an interpreter's path and "
                f"a name of {', '.join(COLUMNS)}"
            )
        pythons[name] = os.path.abspath(path)  # a venv's link must not be followed  # noqa: PTH100
    return pythons


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input", type=Path, help="JSONL; a small workload is made without it")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "configs" / "tokenizer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    parser.add_argument("--num-proc", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--max-len", type=int, default=131_072, help="most tokens of a row")
    parser.add_argument("--peer-python", nargs="+", default=[], metavar="NAME=PATH")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--folder", type=Path, help="where the runs may write; removed again")
    options = parser.parse_args(arguments)
    pythons = read_pythons(options.peer_python)
    cases = [
        Case(name, num_proc)
        for name in options.columns
        for num_proc in (options.num_proc if COLUMNS[name].takes_processes else [1])
    ]
    console = Console(stderr=True)
    machine = describe_machine()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-prepare-") as folder:
        path = prepare_input(options.input, Path(folder)).absolute()
        job = Job(str(path), str(options.tokenizer.absolute()), folder, max_len=options.max_len)
        path.read_bytes()  # every contender finds the file in memory
        results = run_rounds(cases, job, pythons, options.rounds, console)
        size = path.stat().st_size
    title = f"{path.name}, {size / 1e6:.1f} MB, {options.tokenizer.name}, {options.rounds} rounds"
    printer = Console()
    printer = printer if printer.is_terminal else Console(width=_FILE_WIDTH)
    printer.print(build_table(results, cases, title))
    for line in describe_results(results, options.columns):
        printer.print(line, markup=False)
    if options.json:
        report = {
            "input": {"name": path.name, "bytes": size},
            "tokenizer": options.tokenizer.name,
            "rounds": options.rounds,
            "max_len": options.max_len,
            "machine": machine,
            "columns": report_of(results, cases),
        }
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        options.json.write_text(text, encoding="utf-8")
    if not any(results.best_case(name) for name in options.columns):
        sys.exit("no contender came to its end")


if __name__ == "__main__":
    main()
