"""`save_set`: rows that a ``map`` of one's own made, as the sealed set that `pipeline.prepare` leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

import datasets
import pyarrow as pa

from pipeline.config import RowSettings, config_of_rows
from pipeline.errors import UsageError
from pipeline.examples.decisions import name_split
from pipeline.job.assemble import assemble
from pipeline.job.prepared import Prepared
from pipeline.job.save import write_set
from pipeline.rows.row_map import VERDICT_SCHEMA, RowMap
from pipeline.rows.table import digest_rows
from pipeline.sets.place import Target
from pipeline.sets.seal import complete_seal, seal_input
from pipeline.types import ROW_SCHEMA, SPLITS, row_features

_ROWS_AT_ONCE: Final = 512


def save_set(
    rows: datasets.Dataset | datasets.DatasetDict,
    path: str | Path,
    row_map: RowMap,
    *,
    overwrite: bool = False,
    report: bool = True,
) -> Prepared:
    """Save what ``row_map`` made as a sealed set at ``path``: digest, card, report, manifest.

    ``rows`` may hold rejects (``on_reject="keep"``), which then stand in ``rejects.jsonl``. Ids that
    stand twice are settled and the validation split is drawn by the settings of ``row_map``; a
    `DatasetDict` keeps its splits (``train``, ``validation``, ``rejected``). Rows that
    ``save_to_disk`` wrote can be sealed later in the same way.

    Raises `UsageError` for rows that are not those of ``row_map``, for two examples of one id where the
    settings do not allow them, and where something else stands at ``path``.

    Example::

        to_rows = RowMap("org/model")
        save_set(to_rows.map(load_dataset("org/chats", split="train")), "out/set", to_rows)
    """
    target = Target(str(path))
    target.check(overwrite=overwrite)
    assembly = assemble(_complete(rows, row_map.settings), row_map.settings)
    doubled = next((each for each in assembly.rejects if each.code == "duplicate_id"), None)
    if doubled is not None and row_map.settings.on_duplicate == "error":
        at = f"{doubled.file}:{doubled.line}" if doubled.file else "rows"
        raise UsageError(f"save_set: {at} (id {doubled.id!r}): {doubled.reason}")
    builder = row_map.mapper.builder
    seal = seal_input(row_map.row_seal, [{"name": "rows", "sha256": assembly.digest}])
    seal = complete_seal(seal, builder.encoder, builder.templates)
    seal["encoder"] = builder.encoder.encoder_checks
    with target.locked():
        target.check_origin(seal)
        before, stands = target.count_rows(), target.is_taken
        target.open_work("rows")
        config = {**config_of_rows(row_map.settings, str(path)).to_dict(), "report": report}
        manifest = write_set(
            target.staging,
            assembly,
            seal,
            builder,
            config,
            lines=assembly.points,
            shapes=[row_map.shapes],
        )
        target.publish()
        target.clear()
    return Prepared(target.location, manifest, "replaced" if stands else "made", before)


def _complete(
    rows: datasets.Dataset | datasets.DatasetDict, settings: RowSettings
) -> datasets.Dataset:
    """Return the rows with the columns that a `RowMap` gives where it keeps rejects."""
    if isinstance(rows, datasets.Dataset):
        return _complete_split(rows, settings, None)
    splits = cast("Mapping[str, datasets.Dataset]", rows)
    if unknown := [name for name in splits if name not in SPLITS]:
        raise UsageError(
            f"save_set: a split {unknown[0]!r}; expected {', '.join(SPLITS)}, or one Dataset"
        )
    return datasets.concatenate_datasets(
        [_complete_split(part, settings, name) for name, part in splits.items()]
    )


def _complete_split(
    rows: datasets.Dataset, settings: RowSettings, split: str | None
) -> datasets.Dataset:
    rows = rows.with_format(None)
    expected = row_features(settings.columns)
    if missing := [name for name in expected if name not in rows.column_names]:
        raise UsageError(
            f"save_set: no column {', '.join(missing)}; expected what a RowMap of these settings gave"
        )
    verdict = datasets.Features.from_arrow_schema(VERDICT_SCHEMA)
    if set(verdict) <= set(rows.column_names) and split is None:
        return rows.select_columns([*row_features(), *verdict])
    if "code" in rows.column_names and any(rows["code"][:]):
        raise UsageError(
            "save_set: rejects in a DatasetDict; expected them in one Dataset with rows"
        )
    rows = rows.select_columns(list(expected))
    if rows.features != expected:
        rows = rows.cast(expected)
    beside = pa.concat_tables(
        [_BESIDE.empty_table(), *(_judge(part, settings, split) for part in _tables_of(rows))]
    )
    extra = [name for name in beside.column_names if name not in expected]
    both = [rows.flatten_indices(), datasets.Dataset(beside.select(extra))]
    joined = datasets.concatenate_datasets(both, axis=1)
    return joined.select_columns([*row_features(), *verdict])


_BESIDE: Final = pa.schema([*ROW_SCHEMA, *VERDICT_SCHEMA])


def _tables_of(rows: datasets.Dataset) -> Iterator[pa.Table]:
    yield from cast("Any", rows.with_format("arrow")).iter(_ROWS_AT_ONCE)


def _judge(table: pa.Table, settings: RowSettings, split: str | None) -> pa.Table:
    """Return what stands beside rows that were saved: their split, their hashes, no verdict."""
    names, count = table.column_names, table.num_rows
    splits = [split or SPLITS[0]] * count
    if split is None and "preference" in names:
        preferences, conversations = (
            table.column(name).to_pylist() for name in ("preference", "conversation")
        )
        splits = [
            name_split(preference, conversation, settings.validation_fraction)
            for preference, conversation in zip(preferences, conversations, strict=True)
        ]
    digests = digest_rows(table, splits)
    values: dict[str, Any] = {"split": splits, "row_sha256": digests, "line_sha256": digests}
    if "id" not in names:
        # Rows that keep no id are told by what they are, and none is left out.
        values |= {"id": [f"{place}" for place in range(count)], "source": [""] * count}
    arrays = [
        pa.array(values[each.name], each.type)
        if each.name in values
        else pa.nulls(count, each.type)
        for each in _BESIDE
    ]
    return pa.Table.from_arrays(arrays, schema=_BESIDE)
