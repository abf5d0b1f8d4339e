"""``report.html``: what a set holds, on one page that needs nothing else.

The page has no clock and no random names: the same set gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pipeline.lines.bounded_json import NotThatJson, parse_object
from pipeline.sets.figures import GroupFigures, SetFigures
from pipeline.sets.load import restore_config
from pipeline.sets.meanings import FLAG_MEANINGS, REJECT_REMEDIES
from pipeline.sets.pictures import draw_all
from pipeline.sets.row_choice import choose_telling_rows
from pipeline.sets.seal import check_tokenizer
from pipeline.sets.settings import flatten_record, write_command, write_value
from pipeline.view.page import describe_row, render_page, shorten, write_page
from pipeline.view.tokenizer import describe_builder

if TYPE_CHECKING:
    from pipeline.rows.builder import RowBuilder

_ROWS: Final = 30
_TOKENS_OF_PART: Final = 600
_GROUPS: Final = 300
_EXAMPLES: Final = 3
# Of one line; excerpts, ids and reasons are cut before they are written.
_REJECT_BYTES: Final = 2**20
_CODE: Final = re.compile(rb'"code": "(\w+)"')


class SumCheck(NamedTuple):
    """A sum that must hold, in words with its numbers."""

    words: str
    holds: bool


def write_report(
    folder: Path,
    manifest: Mapping[str, Any],
    target: Path,
    builder: RowBuilder | None,
    **options: Any,
) -> None:
    """Write the page of `make_report` to ``target``. Raises `UsageError` where it cannot be written."""
    write_page(target, make_report(SetFigures(folder), manifest, builder, **options))


def make_report(
    figures: SetFigures,
    manifest: Mapping[str, Any],
    builder: RowBuilder | None,
    *,
    without_tokenizer: str = "",
    with_provenance: bool = True,
) -> str:
    """Return the report of the set that ``figures`` are of, as one page.

    ``rejects.jsonl`` is read from its folder; ``manifest`` needs not be there yet, nor hold its
    ``files``. Without a ``builder`` (the set's tokenizer and template, loaded) the page
    has no text and says why: ``without_tokenizer``. With ``with_provenance`` False it has figures
    alone: no text, no sources, no memories, no rejected lines, so that it can be given to others.
    """
    counts, seal = manifest["counts"], manifest["seal"]
    config = restore_config(manifest)
    has_sources = with_provenance and figures.has_provenance
    return render_page(
        "report.html.jinja",
        name=Path(manifest["config"]["output"]).name,
        manifest=manifest,
        server=" ".join(filter(None, (seal["server"]["name"], seal["server"]["version"]))),
        max_len=seal["settings"]["max_len"],
        sums=list(_check_sums(counts, figures)),
        cards=list(_headline(counts)),
        lengths=figures.lengths,
        pictures=draw_all(figures, seal["settings"]["max_len"]) if len(figures.total) else None,
        padding=figures.padding(),
        sharing=figures.sharing(),
        with_provenance=with_provenance,
        has_flags=figures.has_provenance,
        flags=_describe_flags(counts["by_flag"], figures, _EXAMPLES if has_sources else 0),
        rejects=_describe_rejects(
            counts["by_code"], figures.folder / "rejects.jsonl", _EXAMPLES if with_provenance else 0
        ),
        sources=_first(figures.sources()) if has_sources else None,
        memories=_first(figures.memories()) if has_sources else None,
        check=describe_builder(builder, config) if builder else None,
        without_tokenizer=without_tokenizer,
        rows=_describe_rows(figures, builder) if builder and with_provenance else [],
        command=write_command(manifest["config"]),
        sealed=[(key, write_value(value)) for key, value in flatten_record(seal).items()],
    )


def load_builder(manifest: Mapping[str, Any], tokenizer: str | None = None) -> RowBuilder:
    """Return the tokenizer and template of a set, loaded; ``tokenizer`` is where it lies now.

    No code that comes with a tokenizer is run, whatever the set says of itself. Raises `UsageError`
    where it is not there, `SealMismatch` where it is another one.
    """
    from pipeline.rows.builder import RowBuilder

    place = tokenizer or manifest["config"]["tokenizer"]
    # Nothing is encoded in bulk.
    builder = RowBuilder(restore_config(manifest, tokenizer=place, encoder="tokenizers"))
    check_tokenizer(
        manifest["seal"], builder.encoder, builder.templates, manifest["config"]["tokenizer"]
    )
    return builder


def _check_sums(counts: Mapping[str, Any], figures: SetFigures) -> Iterator[SumCheck]:
    """Yield what must add up, by the manifest and by the rows themselves."""
    rows, rejects, points, lines = (counts[name] for name in ("rows", "rejects", "points", "lines"))
    if points == lines:
        yield SumCheck(
            f"{lines:,} lines = {rows:,} rows + {rejects:,} rejects", lines == rows + rejects
        )
    else:
        words = (
            f"{lines:,} lines with {points:,} decision points = {rows:,} rows + {rejects:,} rejects"
        )
        yield SumCheck(words, points == rows + rejects)
    by_code = sum(counts["by_code"].values())
    yield SumCheck(f"{rejects:,} rejects = those of all codes", rejects == by_code)
    splits = figures.rows_by_split
    parts = " + ".join(f"{number:,} {name}" for name, number in splits.items())
    yield SumCheck(f"{rows:,} rows = {parts}, as found in the files", rows == sum(splits.values()))
    tokens, found = counts["tokens"], figures.lengths
    context, continuation = tokens["context"], tokens["continuation"]
    trained = int(figures.continuation.sum())
    yield SumCheck(
        f"{tokens['total']:,} tokens = {context:,} context + {continuation:,} continuation",
        tokens["total"] == context + continuation and continuation == trained,
    )
    served, shortened = counts["rows_as_served"], counts["rows_shortened"]
    yield SumCheck(
        f"{rows:,} rows = {served:,} whole, as the server would see them + {shortened:,} shortened to fit",
        rows == served + shortened and shortened == found.already_shortened,
    )


def _headline(counts: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    tokens = counts["tokens"]
    for name, value in (
        ("rows", counts["rows"]),
        ("rejects", counts["rejects"]),
        ("tokens", tokens["total"]),
        ("tokens of continuation", tokens["continuation"]),
        ("rows shortened", counts["rows_shortened"]),
        ("tokens dropped", tokens["dropped"]),
    ):
        yield {"name": name, "value": f"{value:,}"}


def _describe_flags(
    by_flag: Mapping[str, int], figures: SetFigures, most: int
) -> list[dict[str, Any]]:
    examples = figures.flagged_rows(most) if most else {}
    return [
        {
            "name": flag,
            "rows": number,
            "meaning": FLAG_MEANINGS.get(flag, ""),
            "examples": [
                shorten(row["source"]) for _, _, row in figures.rows_at(examples.get(flag, []))
            ],
        }
        for flag, number in sorted(by_flag.items(), key=lambda item: (-item[1], item[0]))
        if figures.has_provenance
    ]


def _describe_rejects(by_code: Mapping[str, int], path: Path, most: int) -> list[dict[str, Any]]:
    examples = read_rejects(by_code, path, most) if by_code and most else {}
    return [
        {
            "name": code,
            "rejects": number,
            "remedy": REJECT_REMEDIES.get(code, ""),
            "examples": examples.get(code, []),
        }
        for code, number in sorted(by_code.items(), key=lambda item: (-item[1], item[0]))
    ]


def read_rejects(
    by_code: Mapping[str, int], path: Path, most: int
) -> dict[str, list[dict[str, Any]]]:
    """Return the first rejects of each code; the file is read no farther than it takes.

    What is no reject in a file of others is left out.
    """
    if not path.is_file():
        return {}
    missing = {code: min(number, most) for code, number in by_code.items()}
    examples: dict[str, list[dict[str, Any]]] = {code: [] for code in by_code}
    with path.open("rb") as lines:
        while line := lines.readline(_REJECT_BYTES):
            # Inside a value its quotes would be escaped.
            code = match[1].decode() if (match := _CODE.search(line)) else ""
            if missing.get(code):
                with suppress(NotThatJson):
                    reject = parse_object(line)
                    missing[code] -= 1
                    examples[code].append(
                        {key: shorten(str(value)) for key, value in reject.items()}
                    )
                if not any(missing.values()):
                    break
    return examples


def _describe_rows(figures: SetFigures, builder: RowBuilder) -> list[tuple[dict[str, Any], str]]:
    chosen = choose_telling_rows(figures.table, _ROWS)
    rows = figures.rows_at(list(chosen))
    return [
        (describe_row(*row, builder.encoder, most=_TOKENS_OF_PART), why)
        for row, why in zip(rows, chosen.values(), strict=True)
    ]


def _first(groups: Sequence[GroupFigures]) -> dict[str, Any]:
    shown = [group._replace(name=shorten(group.name)) for group in groups[:_GROUPS]]
    return {"shown": shown, "others": len(groups) - len(shown)}
