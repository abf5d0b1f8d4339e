"""A set on the Hub back to a folder: the same rows, checked against the digest before it is there.

The files are read as Parquet by pyarrow, column by column of our own schema: nothing that comes with
a repository is run or unpickled, and no name in it becomes a path.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import datasets
import pyarrow as pa
import pyarrow.parquet
from jinja2 import TemplateError

from pipeline.errors import DataRefused, UnreadableFile, UsageError, excerpt_of
from pipeline.sets.card import PICTURE, write_card
from pipeline.sets.damage import hash_manifest
from pipeline.sets.disk import named_plainly
from pipeline.sets.figures import SetFigures
from pipeline.sets.folder import describe_file, save_rows, seal_folder, without_bars
from pipeline.sets.hub.failures import hub_failures
from pipeline.sets.hub.public_view import BESIDE, REPORT
from pipeline.sets.hub.remote_set import (
    PROVENANCE_COLUMNS,
    RemoteSet,
    data_folder,
    fetch_file,
    name_place,
    read_remote_set,
)
from pipeline.sets.load import verify
from pipeline.sets.manifest import check_manifest, left_out_of, read_manifest
from pipeline.sets.place import MANIFEST, Target
from pipeline.sets.row_files import check_files_of_rows
from pipeline.tokens.without_torch import give_back
from pipeline.types import NUMERIC_COLUMNS, ROW_SCHEMA, SPLITS, row_features
from pipeline.view.report import make_report

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_parquet: Any = pyarrow.parquet
# The page and the picture are made here: those of others are not kept.
_FETCHED: Final = tuple(name for name in BESIDE if name not in (REPORT, PICTURE))
_ROW_FILE: Final = re.compile(rf"({'|'.join(SPLITS)})-(\d{{5}})-of-(\d{{5}})\.parquet")
_BATCH_ROWS: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class PullChoice:
    """Which set comes from the Hub; see `pipeline.cli.sharing.PullOptions`."""

    config_name: str = "default"
    revision: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class Pulled:
    """A set that is in its folder now: ``was_there`` where it was before."""

    output: Path
    manifest: Mapping[str, Any]
    was_there: bool


def pull_set(repo: str, output: str, choice: PullChoice) -> Pulled:
    """Write the set of a repository to the folder ``output``, whole or not at all.

    Raises `UsageError` where there is no such set or the folder must not be replaced, `DataRefused`
    where the rows are not those of the manifest, `HubFailed` where the Hub does not do what is asked.
    """
    import huggingface_hub as hub

    place = name_place(repo, choice.config_name)
    target = Target(output)
    target.check(overwrite=choice.overwrite)
    api = hub.HfApi(library_name="context-frozen")
    with hub_failures(f"pull {repo}"), target.locked():
        remote = read_remote_set(api, place, choice.revision)
        manifest = _check_remote(remote)
        if target.holds_set:
            there = read_manifest(target.path)
            if _is_same(there, manifest) and not verify(target.path):
                return Pulled(target.path, there, was_there=True)
            if not choice.overwrite:
                raise UsageError(
                    f"output: {target.path} holds another set; choose another folder, or "
                    "--overwrite to replace it"
                )
        fetched = _fetch_all(api, remote, manifest)
        try:
            made = _make_set(fetched, manifest, target, repo)
            target.publish()
        finally:
            target.clear()
    return Pulled(target.path, made, was_there=False)


def _check_remote(remote: RemoteSet) -> dict[str, Any]:
    """Return the manifest of a set that can be pulled. Raises `UsageError` where there is none."""
    repo, config_name = remote.place.repo, remote.place.config_name
    if not remote.exists:
        raise UsageError(
            f"pull {repo}: no such data set, or a private one that the token may not read; check the "
            "name, and log in with `hf auth login` or HF_TOKEN"
        )
    if remote.manifest is None and f"{remote.place.folder}{MANIFEST}" in remote.files:
        raise DataRefused(
            f"pull {repo}: {MANIFEST} of config {config_name} is no manifest of ours; "
            "`datasets.load_dataset` reads what others made"
        )
    if remote.manifest is None:
        found = sorted(
            name.rpartition("/")[0] or "default" for name in remote.files if _is_manifest(name)
        )
        raise UsageError(
            f"pull {repo}: no set of ours in config {config_name}; found {', '.join(found) or 'none'}; "
            "`datasets.load_dataset` reads what others made"
        )
    manifest = dict(remote.manifest)
    sealed = manifest.pop("sha256", None)
    if sealed != hash_manifest(manifest):
        raise DataRefused(
            f"pull {repo}: {MANIFEST} was changed after it was pushed; push the set again"
        )
    check_manifest(manifest, f"pull {repo}: {MANIFEST}")
    if "left_out" not in manifest:
        raise DataRefused(
            f"pull {repo}: {MANIFEST}: left_out: missing, so that no push of ours wrote it; push the set "
            "again"
        )
    splits, columns = manifest["counts"]["rows_by_split"], left_out_of(manifest)["columns"]
    if unknown := {*splits} - {*SPLITS} | {*columns} - {*PROVENANCE_COLUMNS}:
        raise DataRefused(
            f"pull {repo}: {MANIFEST}: found {excerpt_of(', '.join(sorted(unknown)))}; expected splits "
            f"{' and '.join(SPLITS)}, and none left out but {', '.join(PROVENANCE_COLUMNS)}"
        )
    return manifest


def _is_manifest(name: str) -> bool:
    return name == MANIFEST or (name.endswith(f"/{MANIFEST}") and name.count("/") == 1)


def _is_same(there: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    lacking = [left_out_of(each)["columns"] for each in (there, manifest)]
    is_equal = all(there[name] == manifest[name] for name in ("digest", "seal"))
    return is_equal and lacking[0] == lacking[1]


def _fetch_all(api: HfApi, remote: RemoteSet, manifest: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files of the set in the Hub's cache by name, checked against the manifest.

    The client goes on where a download was cut. Raises `DataRefused` where a file is missing or is
    not the one that was pushed.
    """
    repo, names = remote.place.repo, [name for name in _FETCHED if name in manifest["files"]]
    for split, rows in manifest["counts"]["rows_by_split"].items():
        # Of an empty split nothing is pushed.
        names += _name_row_files(remote, split) if rows else []
    fetched: dict[str, Path] = {}
    for name in names:
        fetched[name] = fetch_file(api, remote.place, f"{remote.place.folder}{name}", remote.commit)
        if manifest["files"].get(name) != describe_file(fetched[name]):
            raise DataRefused(
                f"pull {repo}: {name} is not the file that was pushed; nothing was written; "
                "push the set again"
            )
    return fetched


def _name_row_files(remote: RemoteSet, split: str) -> list[str]:
    """Return the names of the files of a split, in order. Raises `DataRefused` where one is missing."""
    names = [name.removeprefix(f"{data_folder(remote.place)}/") for name in remote.row_files]
    found = [match for match in map(_ROW_FILE.fullmatch, names) if match and match[1] == split]
    numbers = [int(match[2]) for match in found]
    if not found or numbers != list(range(int(found[0][3]))):
        raise DataRefused(
            f"pull {remote.place.repo}: found {len(found)} files of {split}, not all of them; "
            "nothing was written; push the set again"
        )
    return [f"data/{match[0]}" for match in found]


def _make_set(
    fetched: Mapping[str, Path], manifest: dict[str, Any], target: Target, repo: str
) -> dict[str, Any]:
    """Write the set into the staging folder, verified; return its manifest."""
    work = target.open_work("pull")
    try:
        columns: str = manifest["seal"]["settings"]["columns"]
        left_out = left_out_of(manifest)["columns"]
        with named_plainly(work) as place:
            splits = datasets.DatasetDict(
                {
                    split: _read_split(
                        [
                            path
                            for name, path in fetched.items()
                            if name.startswith(f"data/{split}-")
                        ],
                        place,
                        columns,
                        left_out,
                    )
                    for split, rows in manifest["counts"]["rows_by_split"].items()
                    if rows or len(manifest["counts"]["rows_by_split"]) == 1
                }
            )
            for split, rows in manifest["counts"]["rows_by_split"].items():
                if (found := len(splits.get(split, ()))) != rows:
                    raise ValueError(f"counts {rows} rows of {split}, found {found}")
            save_rows(splits, target.staging)
        for name, path in fetched.items():
            if name in _FETCHED:
                shutil.copyfile(path, target.staging / name)
        figures = SetFigures(target.staging)
        write_card(figures, manifest, None, name=target.path.name)
        if REPORT in manifest["files"]:
            page = make_report(
                figures,
                manifest,
                None,
                without_tokenizer="the set was pulled, and `report --html` has not been run since",
                with_provenance=not left_out,
            )
            (target.staging / REPORT).write_text(page, encoding="utf-8")
        made = seal_folder(target.staging, manifest)
        findings = verify(target.staging)
    except (
        *(LookupError, TypeError, AttributeError, ValueError, OSError),
        *(pa.ArrowException, TemplateError),
    ) as error:
        # Whatever is not as `push` wrote it. With a number it is of the disk.
        if isinstance(error, OSError) and error.errno is not None:
            raise UsageError(
                f"output: {target.path}: {error.strerror}; nothing was written; make room there, or "
                "choose another folder"
            ) from error
        fault = error.reason if isinstance(error, UnreadableFile) else str(error)
        findings, made = [f"{type(error).__name__}: {fault}"], manifest
    if findings:
        raise DataRefused(
            f"pull {repo}: not the set that its manifest says: {excerpt_of(findings[0])}; nothing was "
            "written; push the set again"
        )
    return made


def _read_split(
    paths: Sequence[Path], work: Path, columns: str, left_out: Sequence[str]
) -> datasets.Dataset:
    """Return the rows of Parquet files as a set has them; columns that were left out are empty."""
    names = list(NUMERIC_COLUMNS if columns == "train" else ROW_SCHEMA.names)
    present = [name for name in names if name not in left_out]
    check_files_of_rows(paths)
    for path in paths:
        schema = _parquet.read_schema(path)
        for name in present:
            _check_type(name, schema)
    give_back()
    with without_bars():
        packed = datasets.Dataset.from_parquet(
            [str(path) for path in paths], columns=present, cache_dir=str(work)
        )
        return (
            cast("Any", packed)
            .with_format("arrow")
            .map(
                partial(_fill, names=names),
                batched=True,
                batch_size=_BATCH_ROWS,
                features=row_features(columns),
                remove_columns=present,
                cache_file_name=str(work / f"{paths[0].stem if paths else 'none'}.arrow"),
                load_from_cache_file=False,
            )
            .with_format(None)
        )


def _check_type(name: str, schema: pa.Schema) -> None:
    """Refuse a column of another type: a cast could hide what it holds."""
    expected, found = ROW_SCHEMA.field(name).type, schema.field(name).type
    is_list = pa.types.is_list(expected) and pa.types.is_list(found)
    if found != expected and not (is_list and found.value_type == expected.value_type):
        raise TypeError(f"column {name} is {found}, expected {expected}")


def _fill(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Return the columns ``names``, in the types of a row; text that is not there is empty."""
    arrays: list[Any] = []
    for name in names:
        kind = ROW_SCHEMA.field(name).type
        if name in table.column_names:
            arrays.append(table.column(name).cast(kind))
        else:
            nothing: Any = [] if pa.types.is_list(kind) else ""
            arrays.append(pa.array([nothing] * table.num_rows, kind))
    return pa.Table.from_arrays(arrays, names=list(names))
