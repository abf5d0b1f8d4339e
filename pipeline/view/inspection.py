"""``context-frozen inspect``: chosen rows of a set, on the terminal or on a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import datasets

from pipeline.errors import UsageError
from pipeline.sets.load import open_splits
from pipeline.sets.manifest import read_manifest
from pipeline.sets.one_set import read_one_set
from pipeline.sets.row_choice import RowChoice, choose_rows
from pipeline.sets.seal import check_encoder
from pipeline.tokens.encoder import TextEncoder
from pipeline.view.page import describe_row, render_page, write_page
from pipeline.view.tokens import TokenConsole, view_head, view_row


@dataclass(frozen=True, slots=True)
class Inspection:
    """Rows of a split, by their numbers, and the encoder that their ids are text under."""

    name: str
    split: str
    rows: datasets.Dataset
    numbers: tuple[int, ...]
    encoder: TextEncoder


def inspect_set(
    path: str, choice: RowChoice, *, split: str = "train", tokenizer: str | None = None
) -> Inspection:
    """Return the rows of the set at ``path`` that ``choice`` means.

    Raises `UsageError` for a split, row, id or flag that is not there, and `SealMismatch` for a
    tokenizer under which the ids are other text.
    """
    manifest, splits = read_one_set(
        path, lambda folder: (read_manifest(folder), open_splits(folder))
    )
    if split not in splits:
        raise UsageError(f"{path}: no split {split!r}; expected one of {sorted(map(str, splits))}")
    numbers = choose_rows(splits[split], path, choice)
    encoder = TextEncoder.from_path(tokenizer or manifest["config"]["tokenizer"])
    check_encoder(manifest["seal"], encoder)
    return Inspection(path, split, splits[split], tuple(numbers), encoder)


def print_inspection(inspection: Inspection, *, whitespace: bool = False) -> None:
    """Print the rows as coloured tokens."""
    console = TokenConsole()
    for number in inspection.numbers:
        row = inspection.rows[number]
        console.print(view_head(number, row))
        console.print(view_row(row, inspection.encoder, whitespace=whitespace))
        console.print()


def write_inspection(inspection: Inspection, target: Path, *, whitespace: bool = False) -> None:
    """Write the rows as one page that needs nothing else."""
    rows = [
        describe_row(inspection.split, number, inspection.rows[number], inspection.encoder)
        for number in inspection.numbers
    ]
    name = Path(inspection.name).resolve().name
    page = render_page("rows.html.jinja", name=name, rows=rows, marks_whitespace=whitespace)
    write_page(target, page)
