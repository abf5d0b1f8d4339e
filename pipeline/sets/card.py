"""The card: the ``README.md`` that a stranger finds in the folder of a set, or on its page of the Hub.

What it says of a set comes from the manifest and the rows. Licence and languages come from the
settings ``license`` and ``language`` and are absent where those are. Text of a conversation stands in
one place, in a block of code that it cannot end.
"""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.errors import escape_controls
from pipeline.sets.figures import SetFigures
from pipeline.sets.manifest import left_out_of
from pipeline.sets.meanings import COLUMN_MEANINGS
from pipeline.sets.pictures import draw_card
from pipeline.sets.pieces import BOUNDARY, show_text, split_row
from pipeline.sets.settings import write_command
from pipeline.types import NUMERIC_COLUMNS, REJECTED, ROW_SCHEMA

if TYPE_CHECKING:
    from huggingface_hub import DatasetCard

    from pipeline.rows.builder import RowBuilder
    from pipeline.sets.lengths import Lengths

CARD: Final = "README.md"
PICTURE: Final = "lengths.svg"
TAG: Final = "context-frozen"
"""The tag that every card has."""

_TOKENS_OF_PART: Final = 240
# The Hub's classes of size end at these powers of ten, from a thousand on.
_SIZES: Final = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")


@dataclass(frozen=True, slots=True)
class HubPlace:
    """Where on the Hub a set stands: ``org/name``, and the name of its config there."""

    repo: str
    config_name: str = "default"

    @property
    def name(self) -> str:
        """A name for a folder of the set."""
        name = self.repo.rpartition("/")[2]
        return name if self.config_name == "default" else f"{name}-{self.config_name}"

    @property
    def flag(self) -> str:
        """The flag of ``pull`` that names the config, with a space before it."""
        return "" if self.config_name == "default" else f" --config_name {self.config_name}"

    @property
    def folder(self) -> str:
        """The folder of the repository that holds what is not rows, with a slash after it."""
        return "" if self.config_name == "default" else f"{self.config_name}/"


def write_card(
    figures: SetFigures,
    manifest: Mapping[str, Any],
    builder: RowBuilder | None,
    *,
    name: str | None = None,
) -> None:
    """Write the card of the set that ``figures`` are of, and beside it the picture of its lengths.

    ``name`` is that of the folder in the end, by default the one that the
    set was made as. There is no picture where the set has no report, and no decoded row without a
    ``builder`` (the set's tokenizer, loaded).
    """
    folder = figures.folder
    has_picture = _write_picture(folder, figures, manifest)
    card = make_card(figures, manifest, builder, name=name, has_picture=has_picture)
    (folder / CARD).write_text(str(card), encoding="utf-8", errors="backslashreplace")


def make_card(
    figures: SetFigures,
    manifest: Mapping[str, Any],
    builder: RowBuilder | None,
    *,
    has_picture: bool,
    name: str | None = None,
    hub: HubPlace | None = None,
) -> DatasetCard:
    """Return the card of a set: on disk in a folder ``name``, or as ``hub`` has it."""
    from huggingface_hub import DatasetCard, DatasetCardData

    config, counts, seal = manifest["config"], manifest["counts"], manifest["seal"]
    name = escape_controls(hub.name if hub else name or Path(config["output"]).name)
    title = config.get("pretty_name") or name
    data = DatasetCardData(
        license=config.get("license"),
        language=list(config.get("language") or ()) or None,
        pretty_name=config.get("pretty_name"),
        size_categories=[name_size(counts["rows"])],
        task_categories=["text-generation"],
        tags=[TAG],
        configs=[_name_files(counts["rows_by_split"], hub)],
    )
    text = (
        _environment()
        .get_template("card.md.jinja")
        .render(
            title=plain_words(title),
            name=name,
            hub=hub,
            load=f'load_dataset("{hub.repo}", "{hub.config_name}")'
            if hub
            else f"load_from_disk({json.dumps(name)})",
            server=plain_words(" ".join((seal["server"]["name"], seal["server"]["version"]))),
            settings=seal["settings"],
            counts=counts,
            split=next(iter(counts["rows_by_split"]), "train"),
            has_rejected=bool(counts["rows_by_split"].get(REJECTED)),
            digest=manifest["digest"],
            columns={
                each: COLUMN_MEANINGS[each]
                for each in _columns_of(manifest, is_remote=hub is not None)
            },
            left_out=list(_describe_left_out(manifest)),
            lengths=list(_describe_lengths(figures)),
            picture=f"{hub.folder if hub else ''}{PICTURE}" if has_picture else None,
            seal=list(_describe_seal(seal)),
            # As the rest of the card, from the folder that holds the set.
            command=fence(write_command({**config, "output": name}), "bash"),
            boundary=BOUNDARY,
            example=_show_example(figures, builder) if builder else None,
        )
    )
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n{text}")


def fence(text: str, language: str) -> str:
    """Return ``text`` as a block of code that nothing in it can end.

    >>> print(fence("a ``` b", "text"))
    ````text
    a ``` b
    ````
    """
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text}\n{marks}"


def code_span(text: str) -> str:
    """Return ``text`` as code in a line of Markdown or a cell of a table, which nothing in it can end.

    >>> code_span("a`<b>|")
    "`a'<b>/`"
    """
    return f"`{escape_controls(text).replace('`', chr(39)).replace('|', '/')}`"


def plain_words(text: str) -> str:
    r"""Return ``text`` as words of Markdown on one line: no HTML, no link, no picture, no code.

    >>> plain_words("<b>x [y](z)")
    '&lt;b&gt;x \\[y\\](z)'
    """
    line = " ".join(escape_controls(text).split())
    return re.sub(r"([\\`\[\]|])", r"\\\1", html.escape(line, quote=False))


def name_size(rows: int) -> str:
    """Return the Hub's class of size.

    >>> name_size(0), name_size(68), name_size(1000), name_size(10**12 + 1)
    ('n<1K', 'n<1K', '1K<n<10K', 'n>1T')
    """
    place = max(0, len(str(rows)) - 3)
    if place == 0:
        return f"n<{_SIZES[0]}"
    return f"{_SIZES[place - 1]}<n<{_SIZES[place]}" if place < len(_SIZES) else f"n>{_SIZES[-1]}"


def _name_files(splits: Mapping[str, int], hub: HubPlace | None) -> dict[str, Any]:
    """Return where `load_dataset` finds the rows of each split: Arrow on disk, Parquet on the Hub."""
    # datasets 4.0.0 takes a split of one shard for JSON, since the saved `state.json` beside the
    # shard counts as many: so the files of each split are named.
    # A split without rows is not there, but of a set without any.
    saved = [split for split, rows in splits.items() if rows or not any(splits.values())]
    pattern = f"{hub.folder}data/{{}}-*" if hub else "{}/data-*.arrow"
    files = [{"split": split, "path": pattern.format(split)} for split in saved]
    return {"config_name": hub.config_name if hub else "default", "data_files": files}


def _columns_of(manifest: Mapping[str, Any], *, is_remote: bool) -> Sequence[str]:
    if manifest["seal"]["settings"]["columns"] == "train":
        return NUMERIC_COLUMNS
    left_out = left_out_of(manifest)["columns"] if is_remote else ()
    return [name for name in ROW_SCHEMA.names if name not in left_out]


def _describe_left_out(manifest: Mapping[str, Any]) -> Iterator[str]:
    for kind, names in left_out_of(manifest).items():
        if names:
            yield f"{kind} " + ", ".join(map(code_span, names))


def _describe_lengths(figures: SetFigures) -> Iterator[dict[str, Any]]:
    parts: dict[str, Lengths] = {
        "context": figures.context,
        "continuation": figures.continuation,
        "row": figures.total,
    }
    for name, lengths in parts.items():
        if len(lengths):
            yield {
                "name": name,
                "shortest": int(lengths.min()),
                "median": int(np.median(lengths)),
                "longest": int(lengths.max()),
            }


def _describe_seal(seal: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "key", f"`{seal['key']}`"
    yield "input", f"{len(seal['input'])} files, each by its sha256"
    yield (
        "tokenizer",
        f"{code_span(seal['tokenizer']['class'])}, "
        f"state `{seal['tokenizer']['backend_sha256'][:16]}`",
    )
    for name, sha256 in seal["templates"].items():
        yield f"chat template {plain_words(name)}", code_span(sha256[:16])
    versions = ", ".join(f"{name} {version}" for name, version in seal["versions"].items())
    yield "versions", plain_words(versions)


def _show_example(figures: SetFigures, builder: RowBuilder) -> dict[str, str] | None:
    if not len(figures.total):
        return None
    ((split, number, row),) = figures.rows_at([0])
    pieces = split_row(row, builder.encoder, most=_TOKENS_OF_PART)
    context, continuation = ("".join(map(show_text, part)) for part in pieces)
    words = (
        f"Row {number} of `{split}`, {row['context_len']:,} + "
        f"{row['total_len'] - row['context_len']:,} tokens, long parts without their middle."
    )
    return {"words": words, "block": fence(f"{context}{BOUNDARY}{continuation}", "text")}


def _write_picture(folder: Path, figures: SetFigures, manifest: Mapping[str, Any]) -> bool:
    """Write the picture where there is one to draw."""
    if not manifest["config"].get("report") or not len(figures.total):
        return False
    picture = draw_card(figures, manifest["seal"]["settings"]["max_len"])
    (folder / PICTURE).write_text(picture, encoding="utf-8")
    return True


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Markdown, in which HTML could stand: what is not ours is in blocks of code.
        autoescape=False,
    )
    environment.filters |= {"count": "{:,}".format, "quoted": json.dumps, "shell": shlex.quote}
    environment.filters |= {"code": code_span}
    return environment
