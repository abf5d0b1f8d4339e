"""A saved set to the Hub: card first, then the rows by ``push_to_hub``, then what stands beside them.

Private unless asked for otherwise. The first commit marks the push as begun and the last one as done,
so that a push that was stopped is known as such, here and by `pull`, and a second run ends it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import datasets

from pipeline.errors import DataRefused, HubFailed, UsageError
from pipeline.sets.card import CARD, HubPlace
from pipeline.sets.copies import find_folder
from pipeline.sets.damage import hash_manifest
from pipeline.sets.hub.card_sections import merge_card
from pipeline.sets.hub.failures import hub_failures
from pipeline.sets.hub.public_view import BESIDE, PushedView, view_manifest, view_set
from pipeline.sets.hub.push_rules import PushChoice, check_push
from pipeline.sets.hub.remote_set import (
    UNFINISHED,
    RemoteSet,
    data_folder,
    name_place,
    read_remote_set,
)
from pipeline.sets.load import open_splits, verify
from pipeline.sets.manifest import read_manifest
from pipeline.sets.place import MANIFEST

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_MAIN: Final = "main"


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did: ``was_there`` where nothing had to be sent. ``revision`` is a branch or PR."""

    place: HubPlace
    revision: str
    is_private: bool
    was_there: bool
    manifest: Mapping[str, Any]


def push_set(path: str, repo: str, choice: PushChoice) -> Pushed:
    """Push the saved set at ``path`` to the data set repository ``repo`` (``org/name``).

    A set that is there already is left as it is. Raises `UsageError` for a push that is not allowed
    (see `pipeline.sets.hub.push_rules`), `DataRefused` for a set that does not verify, `HubFailed` where
    the Hub does not do what is asked.
    """
    import huggingface_hub as hub

    folder = find_folder(path)
    manifest = read_manifest(folder)
    place = name_place(repo, choice.config_name)
    if findings := verify(folder):
        raise DataRefused(
            f"push {path}: not what its manifest says: {findings[0]}; nothing was pushed; "
            "`context-frozen verify` says all of it; prepare or pull the set again"
        )
    if not manifest["counts"]["rows"]:
        raise UsageError(f"push {path}: it has no rows; expected some to push")
    strips = choice.public and not choice.with_provenance
    shown = view_manifest(folder, manifest, strips=strips)
    api = hub.HfApi(library_name="context-frozen")
    with hub_failures(f"push to {repo}"):
        remote = _find_remote(api, place, choice)
        if check_push(remote, shown, choice):
            _make_branch(api, place, choice.revision)
            return _say(remote, choice.revision, shown, was_there=True)
        view = view_set(folder, shown, place, is_stripped=strips)
        if not remote.exists:
            api.create_repo(
                place.repo, repo_type="dataset", private=not choice.public, exist_ok=True
            )
            remote = read_remote_set(api, place, None)
            # It may have been made by another meanwhile, and be public.
            check_push(remote, shown, choice)
        _make_branch(api, place, choice.revision)
        revision = _begin(api, view, remote, choice.revision, create_pr=choice.create_pr)
        _push_rows(folder, view, revision)
        _finish(api, view, revision)
        return _say(remote, revision, view.manifest, was_there=False)


def _find_remote(api: HfApi, place: HubPlace, choice: PushChoice) -> RemoteSet:
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return read_remote_set(api, place, choice.revision)
    except RevisionNotFoundError:
        if _is_pull_request(choice.revision):
            raise
        # The branch will be made from the main one.
        return read_remote_set(api, place, None)


def _make_branch(api: HfApi, place: HubPlace, revision: str | None) -> None:
    """Make the branch where it is not there."""
    if revision and not _is_pull_request(revision):
        api.create_branch(place.repo, branch=revision, repo_type="dataset", exist_ok=True)


def _is_pull_request(revision: str | None) -> bool:
    return bool(revision) and str(revision).startswith("refs/pr/")


def _say(
    remote: RemoteSet, revision: str | None, manifest: Mapping[str, Any], *, was_there: bool
) -> Pushed:
    return Pushed(remote.place, revision or _MAIN, bool(remote.is_private), was_there, manifest)


def _begin(
    api: HfApi, view: PushedView, remote: RemoteSet, revision: str | None, *, create_pr: bool
) -> str | None:
    """Commit the card and the mark of a push that has begun; return where the rest goes."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    place, manifest = view.place, view.manifest
    readme = merge_card(remote.card, view.card, place.config_name, manifest["digest"])
    mark = {"digest": manifest["digest"], "seal": manifest["seal"]["key"]}
    add = {CARD: readme.encode(), f"{place.folder}{UNFINISHED}": _to_json(mark)}
    # What an earlier push put beside the rows, some of which this one may leave out.
    gone = [f"{place.folder}{name}" for name in (*BESIDE, MANIFEST)]
    commit = api.create_commit(
        place.repo,
        [
            *(CommitOperationAdd(name, content) for name, content in add.items()),
            *(CommitOperationDelete(name) for name in gone if name in remote.files),
        ],
        commit_message=f"Begin to push {place.config_name}: {manifest['counts']['rows']} rows",
        repo_type="dataset",
        revision=revision,
        create_pr=create_pr,
        parent_commit=remote.commit,
    )
    return commit.pr_revision if create_pr else revision


def _push_rows(folder: Path, view: PushedView, revision: str | None) -> None:
    left_out: list[str] = view.manifest["left_out"]["columns"]
    # `load_dataset` fails for all splits where one of them is empty.
    pushed = {
        name: rows.remove_columns([each for each in left_out if each in rows.column_names])
        for name, rows in open_splits(folder).items()
        if len(rows)
    }
    datasets.DatasetDict(pushed).push_to_hub(
        view.place.repo,
        config_name=view.place.config_name,
        data_dir=data_folder(view.place),
        revision=revision,
        commit_message=f"Rows of {view.place.config_name}",
    )


def _finish(api: HfApi, view: PushedView, revision: str | None) -> None:
    """Commit what stands beside the rows, the manifest with the files that the Hub now has."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    place = view.place
    rows = dict(_find_row_files(api, place, revision))
    _check_row_files(place, rows, view.manifest["counts"]["rows_by_split"])
    manifest = {**view.manifest, "files": {**view.manifest["files"], **rows}}
    manifest["sha256"] = hash_manifest(manifest)
    add = {**view.files, MANIFEST: _to_json(manifest)}
    api.create_commit(
        place.repo,
        [
            *(CommitOperationAdd(f"{place.folder}{name}", add[name]) for name in add),
            CommitOperationDelete(f"{place.folder}{UNFINISHED}"),
        ],
        commit_message=f"Manifest of {place.config_name}",
        repo_type="dataset",
        revision=revision,
    )


def _find_row_files(
    api: HfApi, place: HubPlace, revision: str | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the files of rows on the Hub by their name in the set's folder there."""
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(
        place.repo, data_folder(place), repo_type="dataset", revision=revision
    )
    for entry in tree:
        if isinstance(entry, RepoFile):
            # Kept without LFS, a file has no sha256 there.
            sha256 = {"sha256": entry.lfs.sha256} if entry.lfs else {}
            yield entry.path.removeprefix(place.folder), {"bytes": entry.size, **sha256}


def _check_row_files(
    place: HubPlace, files: Mapping[str, Any], rows_by_split: Mapping[str, int]
) -> None:
    for split in (split for split, rows in rows_by_split.items() if rows):
        names = [name for name in files if name.startswith(f"data/{split}-")]
        if not names or len(names) != int(names[0].rpartition("-of-")[2].removesuffix(".parquet")):
            raise HubFailed(
                f"push to {place.repo}: the Hub has {len(names)} files of {split}, not all of them; "
                "run the same command again"
            )


def _to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
