"""The command: parse first, import what is heavy later.

``context-frozen VERB --config FILE.yaml --key value``: flags win over the file, and unknown keys
are refused with the nearest known one. Exit codes: 0 done, 1 data refused, 2 wrong usage.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import tyro

from pipeline.cli.options import parse_config, parse_options
from pipeline.cli.seeing import (
    DiffOptions,
    InspectOptions,
    ReportOptions,
    show_differences,
    show_report,
    show_rows,
)
from pipeline.cli.sharing import PullOptions, PushOptions, pull, push
from pipeline.cli.streams import SafeFormatter, Streams, say, say_fault, say_json
from pipeline.config import RowSettings, nearest_known, read_settings
from pipeline.errors import (
    MOST_WORDS,
    ContextFrozenError,
    UsageError,
    escape_controls,
    shorten_middle,
)
from pipeline.tokens import without_torch

# Names of unread keys in the summary; manifest.json has them all.
_KEYS_SHOWN = 12


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

    timeout: float = 60.0
    """For --server: seconds that one answer may take, at most 600."""

    trust_remote_code: bool = False
    """For --server: let the tokenizer's repository run its own code, if the set was made so."""

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
class CleanOptions:
    """Settings of ``context-frozen clean``."""

    folder: tyro.conf.Positional[str] = "."
    """Folder that holds sets, searched to any depth."""

    dry_run: bool = False
    """Say what would be removed, and remove nothing."""

    other_machines: bool = False
    """Also remove what jobs of other machines left; whether these still run cannot be seen here."""


def run_prepare(args: Sequence[str]) -> int:
    """Run ``prepare``: the job, then one line that says what was made and where."""
    as_json = "--json" in args
    config = parse_config([arg for arg in args if arg != "--json"])
    _prepare_libraries(may_need_torch=config.trust_remote_code)
    from pipeline.job.prepare import prepare

    prepared = prepare(config)
    if as_json:
        figures = {
            "output": str(prepared.output),
            "was_ready": prepared.was_ready,
            "done": prepared.done,
            "rows_before": prepared.rows_before,
            **prepared.manifest,
        }
        say_json(figures)
        return 0
    counts = prepared.counts
    lines = f"{counts['lines']} lines"
    if counts["points"] != counts["lines"]:
        lines += f" with {counts['points']} decision points"
    say(
        f"{prepared.output}: {prepared.describe()}\n"
        f"  {lines} = {counts['rows']} rows + {counts['rejects']} rejects"
        + "".join(f"\n    {code}: {number}" for code, number in counts["by_code"].items())
        + f"\n  {counts['tokens']['total']} tokens: {counts['tokens']['context']} context, "
        f"{counts['tokens']['continuation']} continuation; {counts['rows_shortened']} rows shortened"
        + "".join(f"\n    {flag}: {number}" for flag, number in counts["by_flag"].items())
        + _describe_shapes(counts)
        + f"\n  digest {prepared.digest}"
    )
    return 0


def _describe_shapes(counts: Mapping[str, Any]) -> str:
    """Return the lines that say how rows were read, and which of their keys nobody read."""
    formats = ", ".join(f"{name} {number}" for name, number in counts["by_format"].items())
    unread = sorted(counts["unread_keys"].items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} ({number})" for name, number in unread[:_KEYS_SHOWN])
    rest = len(unread) - _KEYS_SHOWN
    more = f" and {rest} more, all in manifest.json" if rest > 0 else ""
    return f"\n  shapes of lines: {formats or 'none'}" + (
        f"\n  keys that nobody reads (lines with them): {shown}{more}" if unread else ""
    )


def run_inspect(args: Sequence[str]) -> int:
    """Run ``inspect``: rows as coloured tokens, the boundary marked."""
    options = parse_options(InspectOptions, args, "inspect")
    _prepare_libraries()
    return show_rows(options)


def run_verify(args: Sequence[str]) -> int:
    """Run ``verify``: exit code 0 where the set is what its manifest says, 1 where it is not."""
    options = parse_options(VerifyOptions, args, "verify")
    _prepare_libraries(may_need_torch=options.trust_remote_code)
    from pipeline.sets.load import verify

    findings = verify(options.set, tokenizer=options.tokenizer)
    comparison = None
    if options.server is not None:
        from pipeline.view.live import compare_with_server

        comparison = compare_with_server(
            options.set,
            options.server,
            options.rows,
            timeout=options.timeout,
            trust_remote_code=options.trust_remote_code,
        )
        findings += comparison.findings
    if options.json:
        figures = {"set": options.set, "ok": not findings, "findings": findings}
        if comparison is not None:
            figures |= comparison.to_dict()
        say_json(figures)
        return 1 if findings else 0
    if comparison is not None:
        say(comparison.summary)
    say("\n".join(findings) or f"{options.set}: digest, invariants and seal hold")
    return 1 if findings else 0


def run_check(args: Sequence[str]) -> int:
    """Run ``check``: a table of what the tokenizer and its template do."""
    options = parse_options(CheckOptions, args, "check")
    _prepare_libraries()
    from pipeline.view.table import print_check
    from pipeline.view.tokenizer import check_tokenizer_and_template

    values = dataclasses.asdict(options)
    del values["json"]
    checked = check_tokenizer_and_template(read_settings(RowSettings, values, "check"))
    if options.json:
        say_json(checked.to_dict())
    else:
        print_check(checked)
    return 0


def run_report(args: Sequence[str]) -> int:
    """Run ``report``: how long the rows are, what each ``max_len`` would cost, and the page."""
    options = parse_options(ReportOptions, args, "report")
    _prepare_libraries()
    return show_report(options)


def run_diff(args: Sequence[str]) -> int:
    """Run ``diff``: exit code 0 where two sets have the same rows, 1 where they have not."""
    options = parse_options(DiffOptions, args, "diff")
    _prepare_libraries()
    return show_differences(options)


def run_push(args: Sequence[str]) -> int:
    """Run ``push``: a set to the Hub."""
    options = parse_options(PushOptions, args, "push")
    _prepare_libraries()
    return push(options)


def run_pull(args: Sequence[str]) -> int:
    """Run ``pull``: a set from the Hub, verified."""
    options = parse_options(PullOptions, args, "pull")
    _prepare_libraries()
    return pull(options)


def run_clean(args: Sequence[str]) -> int:
    """Run ``clean``: remove what killed jobs left beside their sets."""
    options = parse_options(CleanOptions, args, "clean")
    from pipeline.job.clean import find_leftovers, remove_leftovers

    find = find_leftovers if options.dry_run else remove_leftovers
    gone: list[int] = []
    for leftover in find(Path(options.folder), other_machines=options.other_machines):
        stays = f" stay: {leftover.used}" if leftover.used else ""
        say(f"{leftover.path}: {leftover.bytes} bytes{stays}")
        gone += [] if leftover.used else [leftover.bytes]
    done = "would be removed" if options.dry_run else "removed"
    print(f"{len(gone)} leftovers, {sum(gone)} bytes {done}")
    return 0


@dataclass(frozen=True)
class Verb:
    """One thing the command does."""

    run: Callable[[Sequence[str]], int]
    purpose: str
    only_shows: bool = False
    """True where nothing was done if its words cannot be written."""


VERBS = {
    "prepare": Verb(run_prepare, "turn JSONL examples into a sealed Arrow data set"),
    "inspect": Verb(run_inspect, "show rows as coloured tokens with the boundary", only_shows=True),
    "check": Verb(run_check, "say what a tokenizer and its template do", only_shows=True),
    "verify": Verb(run_verify, "check a saved set: digest, invariants, seal"),
    "report": Verb(
        run_report,
        "say what a set holds: lengths, costs, and with --html all of it",
        only_shows=True,
    ),
    "diff": Verb(run_diff, "say what differs between two builds of a set"),
    "push": Verb(run_push, "put a set on the Hugging Face Hub, private unless --public"),
    "pull": Verb(run_pull, "fetch a set from the Hub, checked against its digest"),
    "clean": Verb(run_clean, "remove what killed jobs left beside their sets"),
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
        words = shorten_middle(escape_controls(str(error), keep="\n"), MOST_WORDS)
        print(f"context-frozen: {words}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output (head, less) has seen enough.
        return 0
    except KeyboardInterrupt as stop:
        print(
            "context-frozen: stopped; the output is as it was before; a new run goes on from here",
            file=sys.stderr,
        )
        # As a shell says it of a process that a signal ended.
        return 128 + (stop.number if isinstance(stop, _Stopped) else signal.SIGINT)


def _usage() -> str:
    verbs = "\n".join(f"  {name:10}{verb.purpose}" for name, verb in VERBS.items())
    return (
        "usage: context-frozen VERB [--config FILE.yaml] [--key value ...]\n\n"
        f"{verbs}\n\n`context-frozen VERB --help` lists its settings."
    )


class _Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C that asks this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _stop(number: int, _: FrameType | None) -> None:
    raise _Stopped(number)


def _hear_signals() -> None:
    """Take SIGTERM and SIGHUP as Ctrl-C, but for one that is ignored already (nohup)."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _stop)


_owns_process = False
"""True where this process does nothing but the command."""


def run_command() -> int:
    """Run the command of this process and return its exit code: the console script.

    The code says what was done, whether or not somebody could read of it; but where showing was all
    that there was to do, standard output that cannot be written is a failure. A pipe that was closed
    (head, less) is none: its reader has seen enough.
    """
    global _owns_process
    _owns_process = True
    _hear_signals()
    verb = VERBS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    only_shows = verb is None or verb.only_shows
    streams = Streams(ends_with_reader=only_shows)
    sys.excepthook = say_fault
    code = main()
    failure = streams.flush()
    if failure is not None and not isinstance(failure, BrokenPipeError):
        print(
            f"context-frozen: standard output cannot be written: {failure.strerror or failure}",
            file=sys.stderr,
        )
        code = code or int(only_shows)
    return code


def _prepare_libraries(*, may_need_torch: bool = False) -> None:
    """Keep the libraries' bars and advice off a log file; warnings of ours stay.

    No verb computes with torch, which transformers would import for a second and 190 MB of memory;
    only code that comes with a tokenizer may want it.
    """
    if _owns_process and not may_need_torch:
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        without_torch.leave_out()
    handler = logging.StreamHandler()
    handler.setFormatter(SafeFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


if __name__ == "__main__":
    sys.exit(run_command())
