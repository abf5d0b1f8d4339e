"""A saved set to the Hub in one commit: what is there is the set of before, or all of this one.

Private unless asked for otherwise. Rows are sent as Parquet, one file at a time; nobody sees a file
until the commit names it. A repository that changed after it was looked at refuses the commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import datasets

from pipeline.errors import DataRefused, UsageError
from pipeline.sets.card import CARD, HubPlace
from pipeline.sets.copies import find_folder
from pipeline.sets.damage import hash_manifest
from pipeline.sets.folder import count_files
from pipeline.sets.hub.card_sections import describe_rows, merge_card
from pipeline.sets.hub.failures import hub_failures
from pipeline.sets.hub.public_view import BESIDE, PushedView, view_manifest, view_set
from pipeline.sets.hub.push_rules import PushChoice, check_push
from pipeline.sets.hub.remote_set import RemoteSet, data_folder, name_place, read_remote_set
from pipeline.sets.load import open_splits, verify
from pipeline.sets.manifest import MANIFEST, read_manifest, write_manifest

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

_MAIN: Final = "main"
# In place of the `.gitignore` that a repository may have: a set goes there whole.
_NOTHING_IGNORED: Final = "\n"


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
    the Hub does not do what is asked: then it holds what it held.
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
        if was_there := check_push(remote, shown, choice):
            _make_branch(api, remote, choice.revision)
            revision = choice.revision
        else:
            view = view_set(folder, shown, place, is_stripped=strips)
            if not remote.exists:
                api.create_repo(
                    place.repo, repo_type="dataset", private=not choice.public, exist_ok=True
                )
                remote = read_remote_set(api, place, None)
                # It may have been made by another meanwhile, and be public.
                check_push(remote, shown, choice)
            _make_branch(api, remote, choice.revision)
            revision = _commit(api, folder, view, remote, choice)
            shown = view.manifest
    return Pushed(place, revision or _MAIN, bool(remote.is_private), was_there, shown)


def _find_remote(api: HfApi, place: HubPlace, choice: PushChoice) -> RemoteSet:
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return read_remote_set(api, place, choice.revision)
    except RevisionNotFoundError:
        if _is_pull_request(choice.revision):
            raise
        # The branch will be made from the main one.
        return read_remote_set(api, place, None)


def _make_branch(api: HfApi, remote: RemoteSet, revision: str | None) -> None:
    """Make the branch where it is not there, at the commit that was looked at."""
    if revision and not _is_pull_request(revision):
        api.create_branch(
            remote.place.repo,
            branch=revision,
            revision=remote.commit,
            repo_type="dataset",
            exist_ok=True,
        )


def _is_pull_request(revision: str | None) -> bool:
    return bool(revision) and str(revision).startswith("refs/pr/")


def _commit(
    api: HfApi, folder: Path, view: PushedView, remote: RemoteSet, choice: PushChoice
) -> str | None:
    """Put the set in the place of what the config has there; return the branch or pull request."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    place = view.place
    at: dict[str, Any] = {
        "repo_id": place.repo,
        "repo_type": "dataset",
        "revision": choice.revision,
        "create_pr": choice.create_pr,
    }

    def send(additions: list[CommitOperationAdd], *, forgets: bool) -> None:
        api.preupload_lfs_files(
            **at, additions=additions, free_memory=forgets, gitignore_content=_NOTHING_IGNORED
        )

    splits = _choose_rows(folder, view)
    with TemporaryDirectory(prefix="context-frozen-push-") as work:
        rows: list[CommitOperationAdd] = []
        for name, path in _write_row_files(splits, Path(work)):
            addition = CommitOperationAdd(f"{data_folder(place)}/{name}", path)
            send([addition], forgets=True)
            # A file that is so small that the Hub takes it with the commit is still needed.
            if isinstance(addition.path_or_fileobj, bytes):
                path.unlink()
            rows.append(addition)
        sealed = _seal_manifest(view, rows)
        view.card.data["dataset_info"] = describe_rows(
            place.config_name, splits, sum(each.upload_info.size for each in rows)
        )
        readme = merge_card(remote.card, view.card, place.config_name, sealed["digest"])
        beside = {
            **{f"{place.folder}{name}": content for name, content in view.files.items()},
            f"{place.folder}{MANIFEST}": write_manifest(sealed),
            CARD: readme.encode(),
        }
        others = [CommitOperationAdd(name, content) for name, content in beside.items()]
        send(others, forgets=False)
        # What an earlier push put there, some of which this one may leave out.
        before = {*remote.row_files, *(f"{place.folder}{name}" for name in (*BESIDE, MANIFEST))}
        kept = {each.path_in_repo for each in (*rows, *others)}
        gone = [CommitOperationDelete(name) for name in sorted(before & remote.files - kept)]
        commit = api.create_commit(
            **at,
            operations=[*rows, *others, *gone],
            commit_message=f"{place.config_name}: {sealed['counts']['rows']} rows",
            parent_commit=remote.commit,
        )
    return commit.pr_revision if choice.create_pr else choice.revision


def _choose_rows(folder: Path, view: PushedView) -> dict[str, datasets.Dataset]:
    """Return the rows of each split as they go to the Hub."""
    left_out: list[str] = view.manifest["left_out"]["columns"]
    # `load_dataset` fails for all splits where one of them is empty.
    return {
        str(name): rows.remove_columns([each for each in left_out if each in rows.column_names])
        for name, rows in open_splits(folder).items()
        if len(rows)
    }


def _write_row_files(
    splits: Mapping[str, datasets.Dataset], work: Path
) -> Iterator[tuple[str, Path]]:
    """Yield the name and the place of one Parquet file of rows after the other."""
    for split, rows in splits.items():
        number = count_files(rows)
        for index in range(number):
            name = f"{split}-{index:05d}-of-{number:05d}.parquet"
            rows.shard(number, index, contiguous=True).to_parquet(work / name)
            yield name, work / name


def _seal_manifest(view: PushedView, rows: list[CommitOperationAdd]) -> dict[str, Any]:
    """Return the manifest that names every file, those of the rows too."""
    files = {
        each.path_in_repo.removeprefix(view.place.folder): {
            "bytes": each.upload_info.size,
            "sha256": each.upload_info.sha256.hex(),
        }
        for each in rows
    }
    manifest = {**view.manifest, "files": {**view.manifest["files"], **files}}
    manifest["sha256"] = hash_manifest(manifest)
    return manifest
