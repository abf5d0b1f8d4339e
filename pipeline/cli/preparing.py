"""The verbs that make and unmake: ``prepare`` a set, ``clean`` what killed jobs left.

What is heavy is imported when a verb runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.cli.options import POSITIONAL, parse_config, parse_options
from pipeline.cli.process import prepare_libraries
from pipeline.cli.streams import say, say_json
from pipeline.view.stages import show_stage


@dataclass(frozen=True, kw_only=True)
class CleanOptions:
    """Settings of ``context-frozen clean``."""

    folder: str = field(default=".", metadata=POSITIONAL)
    """Folder that holds sets, searched to any depth."""

    dry_run: bool = False
    """Say what would be removed, and remove nothing."""

    other_machines: bool = False
    """Also remove what jobs of other machines left; whether these still run cannot be seen here."""


def run_prepare(args: Sequence[str]) -> int:
    """Run ``prepare``: the job, then what was made and where."""
    as_json = "--json" in args
    config = parse_config(args)
    show_stage(f"reading {', '.join(config.input)}")
    prepare_libraries(may_need_torch=config.trust_remote_code)
    from pipeline.job.prepare import prepare

    prepared = prepare(config, quiet=True)
    if as_json:
        figures = {
            "output": str(prepared.output),
            "was_ready": prepared.was_ready,
            "done": prepared.done,
            "rows_before": prepared.rows_before,
            **prepared.manifest,
        }
        say_json(figures)
    else:
        say(prepared.summarize())
    return 0


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
