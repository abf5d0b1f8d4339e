"""Tables for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.check import TokenizerCheck


def print_check(checked: TokenizerCheck) -> None:
    """Print the facts of `context-frozen check`: name, value, evidence, meaning."""
    table = Table(title=Text(f"{checked.tokenizer} under {checked.server}"), title_justify="left")
    for name in ("fact", "value", "seen", "what it means for training"):
        table.add_column(name, overflow="fold")
    for trait in checked.traits:
        # Text, not str: what a template writes must not be read as markup.
        cells = (trait.name, trait.value, trait.evidence, trait.meaning)
        table.add_row(*(Text(cell) for cell in cells))
    Console(highlight=False).print(table)
