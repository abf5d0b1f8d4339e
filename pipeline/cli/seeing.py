"""The verbs that show what is in a set: ``inspect``, ``report`` and ``diff``.

What is heavy is imported when a verb runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from pipeline.cli.streams import say, say_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Settings of ``context-frozen inspect``."""

    set: tyro.conf.Positional[str]
    """Folder of a saved set."""

    row: int | None = None
    """Row to show, counted from 0."""

    id: str | None = None
    """Show the rows of the example with this id."""

    flag: str | None = None
    """Show rows with this flag."""

    pick: Literal["longest", "shortest", "most_truncated", "random"] | None = None
    """Which rows come first; by default those that stand first in the set."""

    seed: int = 0
    """Seed of --pick random."""

    rows: int | None = None
    """Most rows to show; by default 3, or all of one id."""

    split: str = "train"
    """Split to look into."""

    tokenizer: str | None = None
    """Tokenizer to decode with; by default the one that the set was made with."""

    whitespace: bool = False
    """Show spaces, tabs and ends of lines as marks."""

    html: str | None = None
    """Write the rows to this file, as one page that needs nothing else, in place of the terminal."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Settings of ``context-frozen report``."""

    set: tyro.conf.Positional[str]
    """Folder of a saved set."""

    max_lens: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768)
    """Values of max_len whose cost is shown."""

    tokenizer: str | None = None
    """Where the tokenizer of the set lies now, for --html; by default where it lay."""

    html: str | None = None
    """Also write the whole report to this file, as one page that needs nothing else."""

    json: bool = False
    """Print the figures as JSON."""


@dataclass(frozen=True, kw_only=True)
class DiffOptions:
    """Settings of ``context-frozen diff``."""

    before: tyro.conf.Positional[str]
    """Folder of a saved set."""

    after: tyro.conf.Positional[str]
    """Folder of another build of it."""

    rows: int = 5
    """Changed rows to show, and ids of added and gone ones."""

    all: bool = False
    """Show every setting and count, not only those that differ."""

    tokenizer_before: str | None = None
    """Tokenizer to decode the first set with; by default the one that it was made with."""

    tokenizer_after: str | None = None
    """Tokenizer to decode the second set with; by default the one that it was made with."""

    json: bool = False
    """Print the differences as JSON."""


def show_rows(options: InspectOptions) -> int:
    """Show rows as coloured tokens with the boundary marked, on the terminal or on a page."""
    from pipeline.sets.row_choice import RowChoice
    from pipeline.view.inspection import inspect_set, print_inspection, write_inspection

    choice = RowChoice(
        row=options.row,
        id=options.id,
        flag=options.flag,
        pick=options.pick,
        rows=options.rows,
        seed=options.seed,
    )
    found = inspect_set(options.set, choice, split=options.split, tokenizer=options.tokenizer)
    if options.html is None:
        print_inspection(found, whitespace=options.whitespace)
    else:
        write_inspection(found, Path(options.html), whitespace=options.whitespace)
        say(f"{options.html}: {len(found.numbers)} rows of {options.set}")
    return 0


def show_report(options: ReportOptions) -> int:
    """Say how long the rows are and what each ``max_len`` would cost; and write the page."""
    from pipeline.sets.lengths import LengthReport, measure_set
    from pipeline.sets.one_set import read_one_set
    from pipeline.view.lengths import print_lengths

    def measure(folder: Path) -> LengthReport:
        report = measure_set(folder, options.max_lens)
        if options.html is not None:
            _write_report(folder, Path(options.html), options.tokenizer)
        return report

    report = read_one_set(options.set, measure)
    if options.json:
        say_json({"set": options.set, **report.to_dict()})
        return 0
    print_lengths(options.set, report)
    if options.html is not None:
        say(f"{options.html}: the whole report")
    return 0


def show_differences(options: DiffOptions) -> int:
    """Say what differs between two sets; 0 where their rows are equal, 1 where they are not."""
    from pipeline.sets.diff import compare_sets
    from pipeline.view.differences import print_differences

    found = compare_sets(options.before, options.after, options.rows)
    if options.json:
        say_json(found.to_dict(all_settings=options.all))
    else:
        print_differences(
            found,
            all_settings=options.all,
            tokenizers=(options.tokenizer_before, options.tokenizer_after),
        )
    return 0 if found.is_equal else 1


def _write_report(folder: Path, target: Path, tokenizer: str | None) -> None:
    from pipeline.errors import SealMismatch, UsageError
    from pipeline.sets.manifest import read_manifest
    from pipeline.view.report import load_builder, write_report

    manifest = read_manifest(folder)
    try:
        builder, missing = load_builder(manifest, tokenizer), ""
    except (UsageError, SealMismatch) as error:
        if tokenizer is not None:
            raise
        builder, missing = None, str(error)
        logger.warning("%s; the report shows no text; say where it lies with --tokenizer", error)
    write_report(folder, manifest, target, builder, without_tokenizer=missing)
