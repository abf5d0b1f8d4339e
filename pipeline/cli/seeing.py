"""The verbs that show what is in a set: ``inspect``, ``report`` and ``diff``.

What is heavy is imported when a verb runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.cli.options import POSITIONAL, parse_options
from pipeline.cli.process import prepare_libraries
from pipeline.cli.streams import say, say_json
from pipeline.config import RowSettings, read_settings
from pipeline.errors import SealMismatch, UsageError
from pipeline.view.stages import show_stage

if TYPE_CHECKING:
    from pipeline.sets.row_choice import RowChoice
    from pipeline.view.inspection import Inspection

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Settings of ``context-frozen inspect``."""

    set: str = field(metadata=POSITIONAL)
    """Folder of a saved set; or a file of examples: rows of its first 1,000 lines are made with
    --tokenizer and shown, and nothing is saved."""

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

    decisions: Literal["given", "all", "last"] = "given"
    """For a file of examples: which decision points become rows, as of prepare."""

    max_len: int = 8192
    """For a file of examples: most tokens of a row, as of prepare."""

    whitespace: bool = False
    """Show spaces, tabs and ends of lines as marks."""

    html: str | None = None
    """Write the rows to this file, as one page that needs nothing else, in place of the terminal."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Settings of ``context-frozen report``."""

    set: str = field(metadata=POSITIONAL)
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

    before: str = field(metadata=POSITIONAL)
    """Folder of a saved set."""

    after: str = field(metadata=POSITIONAL)
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


def run_inspect(args: Sequence[str]) -> int:
    """Run ``inspect``: rows as coloured tokens, the boundary marked, on the terminal or on a page."""
    options = parse_options(InspectOptions, args, "inspect")
    show_stage(f"opening {options.set}")
    prepare_libraries()
    from pipeline.sets.row_choice import RowChoice
    from pipeline.view.inspection import print_inspection, write_inspection

    choice = RowChoice(
        row=options.row,
        id=options.id,
        flag=options.flag,
        pick=options.pick,
        rows=options.rows,
        seed=options.seed,
    )
    found = _find_rows(options, choice)
    if options.html is None:
        print_inspection(found, whitespace=options.whitespace)
    else:
        write_inspection(found, Path(options.html), whitespace=options.whitespace)
        say(f"{options.html}: {len(found.numbers)} rows of {options.set}")
    return 0


def _find_rows(options: InspectOptions, choice: RowChoice) -> Inspection:
    """Return the rows of a set, or of a file of examples."""
    from pipeline.view.inspection import inspect_lines, inspect_set

    if not Path(options.set).is_file():
        return inspect_set(options.set, choice, split=options.split, tokenizer=options.tokenizer)
    if options.tokenizer is None:
        raise UsageError(
            f"inspect: {options.set}: a file and no set; give --tokenizer to see the rows that "
            "its examples would be"
        )
    names = ("tokenizer", "decisions", "max_len")
    values = {name: getattr(options, name) for name in names}
    return inspect_lines(options.set, choice, read_settings(RowSettings, values, "inspect"))


def run_report(args: Sequence[str]) -> int:
    """Run ``report``: how long the rows are, what each ``max_len`` would cost, and the page."""
    options = parse_options(ReportOptions, args, "report")
    show_stage(f"measuring {options.set}")
    prepare_libraries()
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


def run_diff(args: Sequence[str]) -> int:
    """Run ``diff``: exit code 0 where two sets have the same rows, 1 where they have not."""
    options = parse_options(DiffOptions, args, "diff")
    show_stage(f"comparing {options.before} with {options.after}")
    prepare_libraries()
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
