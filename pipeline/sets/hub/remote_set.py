"""A set on the Hub as it stands there: which files, whose, and what its manifest says.

The set of config ``default`` lies at the root of its repository (``data/``, ``manifest.json``, ...),
that of another config in a folder of its name. ``README.md`` is always at the root and holds a
section for each config.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import UsageError
from pipeline.lines.bounded_json import MOST_BYTES, NotThatJson, parse_object
from pipeline.sets.card import CARD, PICTURE, HubPlace
from pipeline.sets.hub.failures import is_server_fault
from pipeline.sets.place import MANIFEST

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

PROVENANCE_COLUMNS: Final = ("source", "reason", "memories")
"""Text columns that go public only when asked for."""

_CONFIG_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
# Names that stand at the root for the config `default`, or that readers take for a split.
_TAKEN_NAMES: Final = frozenset(
    {
        *("data", "train", "validation", "test", CARD, MANIFEST, PICTURE),
        *("examples.sha256", "rejects.jsonl", "report.html"),
    }
)

_MOST_CARD_BYTES: Final = 2**24

# Seconds before a download is tried again.
_PAUSES: Final = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class RemoteSet:
    """What the repository holds at one commit; ``is_private`` and ``commit`` of none are None.

    ``manifest`` is None where the config has none of ours; ``card`` is the text of ``README.md``.
    """

    place: HubPlace
    commit: str | None
    is_private: bool | None
    files: frozenset[str]
    manifest: Mapping[str, Any] | None
    card: str | None

    @property
    def exists(self) -> bool:
        """True where there is such a repository."""
        return self.commit is not None

    @property
    def row_files(self) -> list[str]:
        """The files of rows, in order."""
        folder = f"{data_folder(self.place)}/"
        return sorted(name for name in self.files if name.startswith(folder))


def name_place(repo: str, config_name: str) -> HubPlace:
    """Return the place of a set. Raises `UsageError` for a name that no config can have."""
    if not _CONFIG_NAME.fullmatch(config_name) or config_name in _TAKEN_NAMES:
        raise UsageError(
            f"config_name: found {config_name!r}; expected letters, digits, . _ and -, such as qwen3, "
            "and no name of a split or of a file at the root"
        )
    return HubPlace(repo, config_name)


def data_folder(place: HubPlace) -> str:
    """Return the folder of the rows. A push owns it: what it does not write there it removes."""
    return f"{place.folder}data"


def read_remote_set(api: HfApi, place: HubPlace, revision: str | None) -> RemoteSet:
    """Return the set at ``place``, or what stands in its way; nothing where there is no repository.

    Raises what the client raises, `huggingface_hub.errors.RevisionNotFoundError` among it.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.dataset_info(place.repo, revision=revision)
    except RepositoryNotFoundError as error:
        # Of a repository that the token may not see, the Hub says the like with another status.
        if error.response.status_code != 404:
            raise
        return RemoteSet(place, None, None, frozenset(), None, None)
    files = frozenset(each.rfilename for each in info.siblings or ())

    def read(name: str) -> bytes | None:
        if name not in files:
            return None
        path = fetch_file(api, place, name, info.sha)
        most = _MOST_CARD_BYTES if name == CARD else MOST_BYTES
        if (size := path.stat().st_size) > most:
            raise UsageError(
                f"{place.repo}: {name} has {size} bytes; expected at most {most}: nothing of ours is as "
                "large"
            )
        return path.read_bytes()

    card = read(CARD)
    return RemoteSet(
        place=place,
        commit=info.sha,
        is_private=bool(info.private),
        files=files,
        manifest=_parse_manifest(read(f"{place.folder}{MANIFEST}")),
        card=None if card is None else card.decode("utf-8", "replace"),
    )


def fetch_file(api: HfApi, place: HubPlace, name: str, commit: str | None) -> Path:
    """Return a file of the repository at a commit, as it lies in the Hub's cache.

    A download that was cut goes on where it was.
    """
    for pause in _PAUSES:
        try:
            return _download(api, place, name, commit)
        except OSError as error:
            if not is_server_fault(error):
                raise
            logger.warning("%s: the Hub failed to send it; again in %s s", name, pause)
            time.sleep(pause)
    return _download(api, place, name, commit)


def _download(api: HfApi, place: HubPlace, name: str, commit: str | None) -> Path:
    return Path(api.hf_hub_download(place.repo, name, repo_type="dataset", revision=commit))


def _parse_manifest(content: bytes | None) -> Mapping[str, Any] | None:
    """Return what is a manifest of ours; others write files of that name too."""
    try:
        value = parse_object(content or b"")
    except NotThatJson:
        return None
    return value if {"digest", "seal", "counts", "config"} <= value.keys() else None
