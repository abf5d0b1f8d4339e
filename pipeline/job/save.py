"""The folder of a set: rows saved by `datasets`, and beside them rejects, card, report and manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import datasets

from pipeline.job.append import extend_seal
from pipeline.job.assemble import Assembly, spell_examples, spell_rejects
from pipeline.job.heap import give_back_free_memory
from pipeline.rows.builder import RowBuilder
from pipeline.rows.line_mapper import ShapeCounts
from pipeline.sets.card import write_card
from pipeline.sets.counts import describe_counts
from pipeline.sets.figures import SetFigures
from pipeline.sets.folder import save_rows, seal_folder
from pipeline.sets.manifest import EXAMPLES, REJECTS

__all__ = ["write_set"]

_NO_FACTS: Final[Mapping[str, Any]] = {}


def write_set(
    folder: Path,
    assembly: Assembly,
    seal: Mapping[str, Any],
    builder: RowBuilder,
    config: Mapping[str, Any],
    *,
    lines: int,
    blank_lines: int = 0,
    shapes: Iterable[ShapeCounts] = (),
    facts: Mapping[str, Any] = _NO_FACTS,
) -> dict[str, Any]:
    """Write an assembled set into ``folder``, the manifest last; return it.

    ``builder`` made the rows, ``config`` are the resolved settings; ``lines``, ``blank_lines`` and
    ``shapes`` count what was read, ``facts`` are further keys of the manifest.
    """
    save_rows(assembly.splits, folder)
    earlier = assembly.earlier
    manifest: dict[str, Any] = {
        "digest": assembly.digest,
        "seal": extend_seal(earlier.manifest["seal"], seal) if earlier else dict(seal),
        "counts": _count(assembly, lines, blank_lines, shapes),
        "config": dict(config),
        **facts,
    }
    _write_lines(folder / REJECTS, spell_rejects(assembly.all_rejects))
    _write_lines(folder / EXAMPLES, spell_examples(assembly))
    give_back_free_memory()
    figures = SetFigures(folder)
    write_card(figures, manifest, builder)
    if config["report"]:
        from pipeline.view.report import make_report

        page = make_report(figures, manifest, builder)
        (folder / "report.html").write_text(page, encoding="utf-8", errors="backslashreplace")
    return seal_folder(folder, manifest)


def _count(
    assembly: Assembly, lines: int, blank_lines: int, shapes: Iterable[ShapeCounts]
) -> dict[str, Any]:
    """Return the counts of the set, what was read earlier included."""
    splits: Mapping[Any, datasets.Dataset] = assembly.splits
    rows_by_split = {str(name): len(rows) for name, rows in splits.items()}
    lines, faults = lines - assembly.known, assembly.faults
    codes, seen = assembly.codes, [*shapes]
    if earlier := assembly.earlier:
        before = earlier.manifest["counts"]
        for reject in earlier.rejects:
            codes[reject.code] += 1
        seen = [earlier.shapes, *seen]
        lines += before["lines"]
        faults += before["faults"]
        blank_lines += before["blank_lines"]
    described = describe_counts(lines, rows_by_split, codes, [assembly.counts], seen)
    return {**described, "faults": faults, "blank_lines": blank_lines}


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
