"""What a job left, in numbers and in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.view.read_lines import describe_reading

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, slots=True, repr=False)
class Prepared:
    """What a job left: its folder or address, its manifest, and what was done there.

    ``rows_before`` were in the set that was replaced or added to (None: there was no set);
    ``rows_added`` are new in it. Whatever takes a path to a set takes this too.

    >>> counts = {"rows": 2, "lines": 3, "rejects": 1}
    >>> Prepared("out/set", {"counts": counts, "digest": "d2e2b8e3" * 8}, "made")
    Prepared('out/set': made 2 rows of 3 lines, 1 rejects, digest d2e2b8e3…)
    """

    output: Path | str
    manifest: dict[str, Any]
    done: Literal["made", "replaced", "added", "unchanged"]
    rows_before: int | None = None
    rows_added: int = 0

    def __repr__(self) -> str:
        counts = self.counts
        return (
            f"Prepared({str(self.output)!r}: {self.describe()} of {counts['lines']} lines, "
            f"{counts['rejects']} rejects, digest {self.digest[:8]}…)"
        )

    def __fspath__(self) -> str:
        return str(self.output)

    def load(self, **options: Any) -> datasets.DatasetDict:
        """Return the splits of the set, as `pipeline.load` does, which the ``options`` go to."""
        from pipeline.sets.load import load

        return load(self, **options)

    @property
    def was_ready(self) -> bool:
        """True where the set was there already."""
        return self.done == "unchanged"

    @property
    def digest(self) -> str:
        """The content digest of the set, in hex."""
        return self.manifest["digest"]

    @property
    def counts(self) -> dict[str, Any]:
        """Lines, rows, rejects and tokens of the job."""
        return self.manifest["counts"]

    def describe(self) -> str:
        """Return in words what was done."""
        rows: int = self.counts["rows"]
        match self.done:
            case "unchanged":
                return "unchanged"
            case "made":
                return f"made {_say_rows(rows)}"
            case "replaced":
                found = "what was no set of ours"
                if self.rows_before is not None:
                    found = _say_rows(self.rows_before)
                return f"replaced {found} by {rows}"
            case "added":
                before = self.rows_before or 0
                gone = before + self.rows_added - rows
                lost = f", in place of {gone} of them" if gone else ""
                return f"added {self.rows_added} to {_say_rows(before)}{lost}"

    def summarize(self) -> str:
        """Return what the command prints: what was done, the counts, the shapes read, the digest."""
        return "\n  ".join(
            [
                f"{self.output}: {self.describe()}",
                *_spell_counts(self.counts),
                f"digest {self.digest}",
            ]
        )


def _say_rows(number: int) -> str:
    return f"{number} row" if number == 1 else f"{number} rows"


def _spell_counts(counts: Mapping[str, Any]) -> Iterator[str]:
    lines = f"{counts['lines']:,} lines"
    if counts["points"] != counts["lines"]:
        lines += f" with {counts['points']:,} decision points"
    yield f"{lines} = {counts['rows']:,} rows + {counts['rejects']:,} rejects"
    yield from _spell_each(counts["by_code"])
    tokens = counts["tokens"]
    yield (
        f"{tokens['total']:,} tokens: {tokens['context']:,} context, {tokens['continuation']:,} "
        f"continuation; {counts['rows_shortened']:,} rows shortened"
    )
    yield from _spell_each(counts["by_flag"])
    yield from describe_reading(counts)


def _spell_each(numbers: Mapping[str, int]) -> Iterator[str]:
    for name, number in numbers.items():
        yield f"  {name}: {number:,}"
