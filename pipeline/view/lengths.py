"""Tables of ``context-frozen report``: what each ``max_len`` would cost, and the lengths."""

from __future__ import annotations

from rich.table import Column, Table
from rich.text import Text

from pipeline.sets.lengths import LengthReport
from pipeline.view.console import SafeConsole


def print_lengths(name: str, report: LengthReport) -> None:
    """Print the report of the set ``name``."""
    console = SafeConsole()
    console.print(Text(f"{name}: {report.rows} rows"))
    if not report.rows:
        return
    console.print(_tabulate_lengths(report))
    console.print(_tabulate_costs(report))
    if report.already_shortened:
        note = (
            f"{report.already_shortened} rows were shortened when the set was made; they count here "
            "with the length that they had before."
        )
        console.print(Text(note))
    if report.contexts is not None:
        console.print(
            Text(
                f"{report.contexts} contexts, {report.shared_contexts} of them shared by several "
                f"rows; {report.rows_per_context:.2f} rows per context"
            )
        )
    for flag, rows in report.flags.items():
        console.print(Text(f"{flag}: {rows} rows"))


def _tabulate_lengths(report: LengthReport) -> Table:
    table = Table("tokens of", *(_right(name) for name in ("min", "median", "p95", "max")))
    for name in ("context", "continuation", "total"):
        summary = getattr(report, name)
        figures = (summary.min, summary.median, summary.p95, summary.max)
        table.add_row(name, *map(str, figures))
    return table


def _tabulate_costs(report: LengthReport) -> Table:
    names = ("max_len", "rows shortened", "", "rows refused", "context tokens lost")
    table = Table(*(_right(name) for name in names))
    for cost in report.costs:
        share = f"{cost.shortened / report.rows:.1%}"
        figures = (cost.max_len, cost.shortened, share, cost.refused, cost.lost_tokens)
        table.add_row(*map(str, figures))
    return table


def _right(name: str) -> Column:
    return Column(name, justify="right")
