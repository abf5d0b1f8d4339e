"""The command: parse first, import what is heavy later.

``context-frozen VERB --config FILE.yaml --key value``: flags win over the file, and unknown keys
are refused with the nearest known one. Exit codes: 0 done, 1 data refused, 2 wrong usage.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import tyro

from pipeline.config import config_from_mapping, nearest_known
from pipeline.errors import ContextFrozenError, UsageError, escape_controls
from pipeline.flags import parse_config, parse_options


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Settings of ``context-frozen inspect``."""

    set: tyro.conf.Positional[str]
    """Folder of a saved set."""

    row: int | None = None
    """Row to show, counted from 0."""

    id: str | None = None
    """Show the rows of the example with this id."""

    rows: int = 3
    """Number of rows to show where neither row nor id is given."""

    split: str = "train"
    """Split to look into."""

    tokenizer: str | None = None
    """Tokenizer to decode with; by default the one that the set was made with."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Settings of ``context-frozen verify``."""

    set: tyro.conf.Positional[str]
    """Folder of a saved set."""

    tokenizer: str | None = None
    """Also check that this tokenizer is the one that the set was made with."""

    server: str | None = None
    """URL of a running vLLM or SGLang server, whose ids for some rows are compared with ours."""

    rows: int = 100
    """Number of rows to compare with the server."""

    json: bool = False
    """Print the findings as JSON."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Settings of ``context-frozen check``."""

    tokenizer: tyro.conf.Positional[str]
    """Folder or Hub name of a tokenizer."""

    chat_template: str | None = None
    """Jinja file to use in place of the tokenizer's own template."""

    chat_template_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    """Variables for the chat template."""

    server: Literal["vllm", "sglang", "plain"] = "vllm"
    """Server whose rewriting of a request is reproduced."""

    server_options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Flags that the server runs with."""

    json: bool = False
    """Print the facts as JSON."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Settings of ``context-frozen report``."""

    set: tyro.conf.Positional[str]
    """Folder of a saved set."""

    max_lens: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768)
    """Values of max_len whose cost is shown."""

    json: bool = False
    """Print the figures as JSON."""


def run_prepare(args: Sequence[str]) -> int:
    """Run ``prepare``: the job, then one line that says what was made and where."""
    as_json = "--json" in args
    config = parse_config([arg for arg in args if arg != "--json"])
    _quiet_libraries()
    from pipeline.job.prepare import prepare

    prepared = prepare(config)
    if as_json:
        figures = {
            "output": str(prepared.output),
            "was_ready": prepared.was_ready,
            **prepared.manifest,
        }
        print(json.dumps(figures, ensure_ascii=False))
        return 0
    counts = prepared.counts
    made = "is ready already, same seal" if prepared.was_ready else "made"
    print(
        f"{prepared.output}: {made}\n"
        f"  {counts['lines']} lines = {counts['rows']} rows + {counts['rejects']} rejects"
        + "".join(f"\n    {code}: {number}" for code, number in counts["by_code"].items())
        + f"\n  {counts['tokens']['total']} tokens: {counts['tokens']['context']} context, "
        f"{counts['tokens']['continuation']} continuation; {counts['rows_shortened']} rows shortened"
        + "".join(f"\n    {flag}: {number}" for flag, number in counts["by_flag"].items())
        + f"\n  digest {prepared.digest}"
    )
    return 0


def run_inspect(args: Sequence[str]) -> int:
    """Run ``inspect``: rows as coloured tokens, the boundary marked."""
    options = parse_options(InspectOptions, args, "inspect")
    _quiet_libraries()
    from pipeline.view.tokens import print_rows

    print_rows(options.set, options.split, options.row, options.id, options.rows, options.tokenizer)
    return 0


def run_verify(args: Sequence[str]) -> int:
    """Run ``verify``: exit code 0 where the set is what its manifest says, 1 where it is not."""
    options = parse_options(VerifyOptions, args, "verify")
    _quiet_libraries()
    from pipeline.saved import verify

    findings = verify(options.set, tokenizer=options.tokenizer)
    comparison = None
    if options.server is not None:
        from pipeline.check.live import compare_with_server

        comparison = compare_with_server(options.set, options.server, options.rows)
        findings += comparison.findings
    if options.json:
        figures = {"set": options.set, "ok": not findings, "findings": findings}
        if comparison is not None:
            figures |= comparison.to_dict()
        print(json.dumps(figures, ensure_ascii=False))
        return 1 if findings else 0
    if comparison is not None:
        print(comparison.summary)
    print("\n".join(findings) or f"{options.set}: digest, invariants and seal hold")
    return 1 if findings else 0


def run_check(args: Sequence[str]) -> int:
    """Run ``check``: a table of what the tokenizer and its template do."""
    options = parse_options(CheckOptions, args, "check")
    _quiet_libraries()
    from pipeline.check.tokenizer import check_tokenizer_and_template
    from pipeline.view.table import print_check

    values = {**dataclasses.asdict(options), "input": "-", "output": "-"}
    del values["json"]
    checked = check_tokenizer_and_template(config_from_mapping(values, "check"))
    if options.json:
        print(json.dumps(checked.to_dict(), ensure_ascii=False))
    else:
        print_check(checked)
    return 0


def run_report(args: Sequence[str]) -> int:
    """Run ``report``: how long the rows are, and what each ``max_len`` would cost."""
    options = parse_options(ReportOptions, args, "report")
    _quiet_libraries()
    from pipeline.length_report import measure_set
    from pipeline.view.lengths import print_lengths

    report = measure_set(options.set, options.max_lens)
    if options.json:
        print(json.dumps({"set": options.set, **report.to_dict()}, ensure_ascii=False))
    else:
        print_lengths(options.set, report)
    return 0


@dataclass(frozen=True)
class Verb:
    """One thing the command does."""

    run: Callable[[Sequence[str]], int]
    purpose: str


VERBS = {
    "prepare": Verb(run_prepare, "turn JSONL examples into a sealed Arrow data set"),
    "inspect": Verb(run_inspect, "show rows as coloured tokens with the boundary"),
    "check": Verb(run_check, "say what a tokenizer and its template do"),
    "verify": Verb(run_verify, "check a saved set: digest, invariants, seal"),
    "report": Verb(run_report, "say how long the rows are and what each max_len would cost"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return 0
    verb = VERBS.get(args[0])
    try:
        if verb is None:
            raise UsageError(f"unknown verb {args[0]!r}{nearest_known(args[0], VERBS)}")
        return verb.run(args[1:])
    except ContextFrozenError as error:
        words = escape_controls(str(error), keep="\n")
        print(f"context-frozen: {words}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output (head, less) has seen enough; nothing is left to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("context-frozen: stopped; the output is as it was before", file=sys.stderr)
        return 130


def _usage() -> str:
    verbs = "\n".join(f"  {name:10}{verb.purpose}" for name, verb in VERBS.items())
    return (
        "usage: context-frozen VERB [--config FILE.yaml] [--key value ...]\n\n"
        f"{verbs}\n\n`context-frozen VERB --help` lists its settings."
    )


def _quiet_libraries() -> None:
    """Keep the libraries' bars and advice off a log file; warnings of ours stay."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


if __name__ == "__main__":
    sys.exit(main())
