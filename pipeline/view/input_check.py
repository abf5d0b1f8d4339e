"""``context-frozen check --input``: what rows are, before any job, and without a tokenizer if need be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pipeline.config import RowSettings, read_settings
from pipeline.errors import Rejected
from pipeline.examples.decisions import DecisionPoint, count_answers, find_decision_points
from pipeline.examples.line_parser import LineParser
from pipeline.examples.shapes import ReadRow, check_format, read_row
from pipeline.lines.tables import read_inputs
from pipeline.lines.text import SourceLine
from pipeline.rows.line_mapper import ShapeCounts
from pipeline.view.read_lines import describe_reading

if TYPE_CHECKING:
    from pipeline.prompt.request import ChatRequest
    from pipeline.rows.builder import RowBuilder
    from pipeline.view.other_versions import OtherVersions

MOST_LINES: Final = 1000
"""Of an input that are looked at."""

_OF_REJECT: Final = ("code", "reject_reason", "excerpt")


class Refusal(NamedTuple):
    """The first line that is refused for one reason, by its code."""

    source: str
    code: str
    reason: str


@dataclass(slots=True)
class InputCheck:
    """What the first lines of an input are.

    ``shapes`` counts those that are examples; ``tokenizer`` is None where nothing was rendered.
    ``other_versions`` make other prompts of the first ``prompts`` than the server's version.
    """

    input: str
    tokenizer: str | None = None
    lines: int = 0
    is_whole: bool = True
    shapes: ShapeCounts = field(default_factory=ShapeCounts)
    refused: Counter[str] = field(default_factory=Counter[str])
    first_refused: list[Refusal] = field(default_factory=list[Refusal])
    prompts: int = 0
    other_versions: list[OtherVersions] = field(default_factory=list["OtherVersions"])

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON can hold them."""
        return {
            "input": self.input,
            "tokenizer": self.tokenizer,
            "lines": self.lines,
            "is_whole": self.is_whole,
            **self.shapes.describe(),
            "refused": dict(self.refused.most_common()),
            "first_refused": [each._asdict() for each in self.first_refused],
            "prompts": self.prompts,
            "other_versions": [asdict(each) for each in self.other_versions],
        }

    def refuse(self, source: str, error: Rejected) -> None:
        """Count what is refused; the first of each code is kept."""
        if not self.refused[error.code]:
            words = str(error).removeprefix(f"{error.code}: ")
            self.first_refused.append(Refusal(source, error.code, words))
        self.refused[error.code] += 1


def check_input(path: str, values: Mapping[str, Any], tokenizer: str | None = None) -> InputCheck:
    """Return what the first 1,000 lines of an input are, under the settings ``values`` of rows.

    With a ``tokenizer`` they are also rendered, so that what the template refuses is told, and which
    versions of vLLM would have made other prompts of them. Raises
    `UsageError` for a path or setting that is wrong, `UnreadableFile` as a job would.
    """
    settings = read_settings(RowSettings, {**values, "tokenizer": tokenizer or ""}, "check")
    check_format(settings.format)
    checked = InputCheck(path, tokenizer)
    lines = list(islice(read_inputs([path]), MOST_LINES + 1))
    checked.is_whole = len(lines) <= MOST_LINES
    del lines[MOST_LINES:]
    checked.lines = len(lines)
    if tokenizer is None:
        _read(checked, lines, settings)
    else:
        _render(checked, lines, settings)
    return checked


def describe_input(checked: InputCheck) -> Iterator[str]:
    """Yield the lines that say it."""
    first = "" if checked.is_whole else "the first "
    yield f"{checked.input}: {first}{checked.lines:,} lines looked at"
    for words in describe_reading(checked.to_dict()):
        yield f"  {words}"
    number = sum(checked.refused.values())
    by = "" if checked.tokenizer is None else f" with the template of {checked.tokenizer}"
    yield f"  {number:,} would be refused{by}" + (":" if number else "")
    for source, code, reason in checked.first_refused:
        yield f"    {code} {checked.refused[code]:,}, first {source}: {reason}"
    if checked.other_versions:
        yield f"  of {checked.prompts:,} prompts, under another server_options.server_version:"
        yield from (f"    {each}" for each in checked.other_versions)
    if checked.tokenizer is None:
        yield "  --tokenizer path/to/model also tells what its template would refuse"


def _read(
    checked: InputCheck, lines: Sequence[tuple[str, SourceLine]], settings: RowSettings
) -> None:
    """Count what is an example and what is none, as far as it is known before rendering."""
    parser = LineParser()
    for file, line in lines:
        try:
            read, points = _read_points(parser, line, settings)
        except Rejected as error:
            checked.refuse(f"{file}:{line.line}", error)
            continue
        answers = count_answers(read.example, points)
        checked.shapes.add(read.format, read.unread | line.unread_columns, answers)


def _render(
    checked: InputCheck, lines: Sequence[tuple[str, SourceLine]], settings: RowSettings
) -> None:
    """Count what the rows of the lines are, and what is refused of them."""
    from pipeline.lines.dataset import batch_lines
    from pipeline.rows.row_map import RowMap

    to_rows = RowMap(settings=settings, on_reject="keep")
    for table in batch_lines(lines):
        found = to_rows.map_table(table).select(["source", *_OF_REJECT]).to_pylist()
        for row in found:
            if row["code"] is not None:
                error = Rejected(*(row[name] for name in _OF_REJECT))
                checked.refuse(row["source"], error)
    checked.shapes = to_rows.shapes
    _compare_versions(checked, lines, settings, to_rows.mapper.builder)


def _compare_versions(
    checked: InputCheck,
    lines: Sequence[tuple[str, SourceLine]],
    settings: RowSettings,
    builder: RowBuilder,
) -> None:
    """Find the versions of vLLM that make other prompts, where it is vLLM that renders them."""
    from pipeline.prompt.vllm import VllmDialect
    from pipeline.view.other_versions import MOST_REQUESTS, find_other_versions

    if isinstance(builder.dialect, VllmDialect):
        requests = list(islice(_iterate_requests(lines, settings, builder), MOST_REQUESTS))
        checked.prompts = len(requests)
        checked.other_versions = find_other_versions(requests, builder.dialect, builder.templates)


def _iterate_requests(
    lines: Sequence[tuple[str, SourceLine]], settings: RowSettings, builder: RowBuilder
) -> Iterator[ChatRequest]:
    """Yield the requests of the points that are rendered from messages, and not refused."""
    parser = LineParser()
    for _, line in lines:
        with suppress(Rejected):
            _, points = _read_points(parser, line, settings)
            for point in points:
                if point.example.messages is not None and point.example.context_ids is None:
                    yield builder.render_context(point)[0]


def _read_points(
    parser: LineParser, line: SourceLine, settings: RowSettings
) -> tuple[ReadRow, list[DecisionPoint]]:
    if line.reject is not None:
        raise line.reject
    read = read_row(parser.parse(line.text or ""), settings.format, "")
    return read, list(find_decision_points(read.example, settings.decisions))
