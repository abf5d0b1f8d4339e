"""``context-frozen inspect``: chosen rows of a set or of a file of examples, on the terminal or on a page."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa

from pipeline.config import RowSettings
from pipeline.errors import UsageError
from pipeline.lines.dataset import batch_lines
from pipeline.lines.tables import read_inputs
from pipeline.rows.row_map import RowMap
from pipeline.sets.load import open_splits
from pipeline.sets.manifest import read_manifest
from pipeline.sets.one_set import read_one_set
from pipeline.sets.row_choice import RowChoice, choose_rows
from pipeline.sets.seal import check_encoder
from pipeline.tokens.encoder import TextEncoder
from pipeline.tokens.without_torch import give_back
from pipeline.types import SPLITS
from pipeline.view.input_check import MOST_LINES
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
    check_encoder(manifest["seal"], encoder, manifest["config"]["tokenizer"])
    return Inspection(path, split, splits[split], tuple(numbers), encoder)


def inspect_lines(path: str, choice: RowChoice, settings: RowSettings) -> Inspection:
    """Return rows of the first 1,000 lines of an input, made under ``settings`` and saved nowhere.

    What is refused of them is left out, with a warning that counts it.
    Raises `UsageError` for a tokenizer, row, id or flag that is not there.
    """
    to_rows = RowMap(settings=settings, on_reject="skip")
    to_rows.load()
    # `datasets` looks for torch among what is loaded.
    give_back()
    lines = islice(read_inputs([path]), MOST_LINES)
    made = [to_rows(table) for table in batch_lines(lines)]
    if not made:
        raise UsageError(f"{path}: no line to read; expected JSONL examples")
    rows = datasets.Dataset(pa.concat_tables(made))
    numbers = choose_rows(rows, path, choice)
    return Inspection(path, SPLITS[0], rows, tuple(numbers), to_rows.mapper.builder.encoder)


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
