"""Which pushes are refused: nothing of others is destroyed, and nothing becomes public by accident."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.errors import UsageError, excerpt_of
from pipeline.sets.card import CARD
from pipeline.sets.hub.card_sections import holds_sections, read_configs
from pipeline.sets.hub.remote_set import RemoteSet

# A repository that has nothing but these holds nobody's data.
_OF_THE_HUB: Final = frozenset({".gitattributes", ".gitignore", "LICENSE", CARD})
_OTHER_FORMATS: Final = (
    *(".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".arrow", ".xml", ".h5", ".lance"),
    *(".gz", ".bz2", ".xz", ".zst", ".zip", ".tar"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PushChoice:
    """How a set goes to the Hub; see `pipeline.cli.sharing.PushOptions`."""

    public: bool = False
    with_provenance: bool = False
    config_name: str = "default"
    revision: str | None = None
    create_pr: bool = False
    overwrite: bool = False


def check_push(remote: RemoteSet, manifest: Mapping[str, Any], choice: PushChoice) -> bool:
    """Return True where the set is there already; refuse a push that must not be.

    Raises `UsageError`.
    """
    if not remote.exists:
        if choice.create_pr:
            raise UsageError(
                f"create_pr: {remote.place.repo} is not there; leave create_pr out to make it"
            )
        return False
    _check_visibility(remote, choice)
    if remote.manifest is not None:
        differences = _compare(remote.manifest, manifest)
        if not choice.overwrite:
            if not differences:
                return True
            raise UsageError(
                f"push to {remote.place.repo}: config {remote.place.config_name} is there and is "
                f"another set ({'; '.join(differences)}); choose another --config_name, or "
                "--overwrite to replace it"
            )
    elif not choice.overwrite:
        _check_owner(remote)
    return False


def _check_visibility(remote: RemoteSet, choice: PushChoice) -> None:
    if not remote.is_private and not choice.public:
        raise UsageError(
            f"push to {remote.place.repo}: the repository is public; --public pushes what may be "
            "public, or choose another REPO"
        )


def _compare(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return what differs between the set on the Hub and the one to be pushed, in words."""
    pairs = {
        "digest": (there["digest"], here["digest"]),
        "seal": (_key_of(there), _key_of(here)),
        "columns left out": (_left_out_of(there), _left_out_of(here)),
    }
    return [
        f"{name} there {_shorten(before)}, here {_shorten(after)}"
        for name, (before, after) in pairs.items()
        if before != after
    ]


def _check_owner(remote: RemoteSet) -> None:
    """Refuse to write where data of others are."""
    place = remote.place
    configs = read_configs(remote.card)
    if remote.row_files or place.config_name in configs:
        raise UsageError(
            f"push to {place.repo}: config {place.config_name} is there and is not a set of ours "
            f"({excerpt_of(', '.join(remote.row_files) or CARD)}); choose another --config_name, or "
            "--overwrite to replace its rows"
        )
    others = sorted(remote.files - _OF_THE_HUB)
    if not others or holds_sections(remote.card):
        return
    if configs:
        _check_formats(place.repo, others)
        return
    raise UsageError(
        f"push to {place.repo}: it holds files of others ({excerpt_of(', '.join(others))}) that readers "
        "find by their names alone, and would not find beside a config of ours; list them under "
        f"`configs:` in its {CARD} first, choose another REPO, or --overwrite"
    )


def _check_formats(repo: str, others: Sequence[str]) -> None:
    """Refuse to stand beside data that make `load_dataset` take another reader for all configs."""
    unlike = [name for name in others if name.lower().endswith(_OTHER_FORMATS)]
    if unlike:
        raise UsageError(
            f"push to {repo}: it holds data in another format ({excerpt_of(', '.join(unlike))}), and "
            "load_dataset reads all configs of a repository with one reader; choose another REPO"
        )


def _key_of(manifest: Mapping[str, Any]) -> Any:
    seal = manifest["seal"]
    return seal.get("key") if isinstance(seal, dict) else None


def _left_out_of(manifest: Mapping[str, Any]) -> Any:
    left_out = manifest.get("left_out")
    return left_out.get("columns", []) if isinstance(left_out, dict) else []


def _shorten(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{str(value)[:16]}…"
