"""Facts as a table on the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text

from pipeline.answer.traits import Trait
from pipeline.view.console import SafeConsole


def print_facts(title: str, traits: Iterable[Trait]) -> None:
    """Print the facts of `context-frozen check`: name, value, meaning, and below it what was seen."""
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE, padding=(0, 2, 0, 0))
    table.add_column("fact", no_wrap=True)
    table.add_column("value", overflow="fold", max_width=17)
    table.add_column("what it means for training", overflow="fold")
    for trait in traits:
        # Text, not str: what a template writes must not be read as markup.
        told = Text(trait.meaning)
        if trait.evidence:
            told.append(f"\nseen: {trait.evidence}", style="dim")
        table.add_row(Text(trait.name), Text(trait.value), told)
    SafeConsole().print(table)
