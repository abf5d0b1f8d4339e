"""The command: parse first, import what is heavy later.

``context-frozen VERB --config FILE.yaml --key value``: flags win over the file, and unknown keys
are refused with the nearest known one. Exit codes: 0 done, 1 data refused, 2 wrong usage.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.cli.checking import run_check, run_verify
from pipeline.cli.preparing import run_clean, run_prepare
from pipeline.cli.process import Stopped, end_process, own_process
from pipeline.cli.seeing import run_diff, run_inspect, run_report
from pipeline.cli.sharing import run_pull, run_push
from pipeline.cli.streams import Streams, say_fault
from pipeline.cli.words import EXAMPLES
from pipeline.config import nearest_known
from pipeline.errors import (
    MOST_WORDS,
    ContextFrozenError,
    UsageError,
    escape_controls,
    shorten_middle,
)


@dataclass(frozen=True)
class Verb:
    """One thing the command does."""

    run: Callable[[Sequence[str]], int]
    purpose: str
    only_shows: bool = False
    """True where nothing was done if its words cannot be written."""


VERBS = {
    "prepare": Verb(run_prepare, "turn chat logs into a data set of token rows"),
    "inspect": Verb(run_inspect, "show rows as coloured tokens with the boundary", only_shows=True),
    "check": Verb(run_check, "say what a tokenizer, a file of rows or a model is", only_shows=True),
    "verify": Verb(run_verify, "check a saved set: files, rows, digest, a server's ids"),
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
    if args[0] == "--version":
        from pipeline import __version__

        print(f"context-frozen {__version__}")
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
        return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def _usage() -> str:
    verbs = "\n".join(
        f"  {name:10}{verb.purpose}\n            {EXAMPLES[name]}" for name, verb in VERBS.items()
    )
    return (
        "usage: context-frozen VERB [--config FILE.yaml] [--setting value ...]\n\n"
        f"{verbs}\n\n`context-frozen VERB --help` lists its settings; "
        "`context-frozen --version` says which release this is."
    )


def run_command() -> int:
    """Run the command of this process and end it with its exit code: the console script.

    The code says what was done, whether or not somebody could read of it; but where showing was all
    that there was to do, standard output that cannot be written is a failure. A pipe that was closed
    (head, less) is none: its reader has seen enough.
    """
    own_process()
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
    end_process(code)


if __name__ == "__main__":
    run_command()
