"""What of a set goes to the Hub: all of it, or what may be public.

Without provenance the text columns `PROVENANCE_COLUMNS` stay at home, and so do the files that quote
the input (``rejects.jsonl``) or name its lines (``examples.sha256``); card and report have figures
alone, and the manifest's paths are names. The tokens are there in any case: who has the tokenizer
can read the conversations.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import SealMismatch, UsageError
from pipeline.lines.data_sets import HUB_PREFIX
from pipeline.sets.card import PICTURE, HubPlace, make_card
from pipeline.sets.figures import SetFigures
from pipeline.sets.folder import describe_file
from pipeline.sets.hub.remote_set import PROVENANCE_COLUMNS
from pipeline.sets.manifest import EXAMPLES, REJECTS, left_out_of
from pipeline.view.report import load_builder, make_report

if TYPE_CHECKING:
    from huggingface_hub import DatasetCard

    from pipeline.rows.builder import RowBuilder

logger = logging.getLogger(__name__)

REPORT: Final = "report.html"
BESIDE: Final = (EXAMPLES, PICTURE, REJECTS, REPORT)
"""Files that stand beside the rows of a set, its manifest and its card apart."""

_WITH_PROVENANCE: Final = (EXAMPLES, REJECTS)
_PATHS: Final = ("tokenizer", "output", "chat_template")


@dataclass(frozen=True, slots=True)
class PushedView:
    """What goes to ``place``: the card, the files beside the rows by name, the manifest without rows.

    ``manifest["left_out"]`` names the columns and files that stay at home.
    """

    place: HubPlace
    manifest: dict[str, Any]
    files: Mapping[str, Path | bytes]
    card: DatasetCard


def view_manifest(folder: Path, manifest: Mapping[str, Any], *, strips: bool) -> dict[str, Any]:
    """Return the manifest that goes to the Hub, its ``files`` apart; with ``strips``, of a public set.

    Paths of this machine are names there. ``left_out`` says what stays at home; the seal is the same.
    """
    left_out = _name_left_out(folder, manifest, strips=strips)
    config = dict(manifest["config"])
    if strips:
        config["input"] = [
            path if path.startswith(HUB_PREFIX) else Path(path).name for path in config["input"]
        ]
        for name in _PATHS:
            if config.get(name):
                config[name] = _name_of(config[name])
    return {**manifest, "config": config, "left_out": left_out}


def view_set(
    folder: Path, manifest: Mapping[str, Any], place: HubPlace, *, is_stripped: bool
) -> PushedView:
    """Return what of the set in ``folder`` goes to the Hub; ``manifest`` is of `view_manifest`."""
    figures = SetFigures(folder)
    names = [name for name in BESIDE if name not in manifest["left_out"]["files"]]
    files: dict[str, Path | bytes] = {
        name: folder / name for name in names if (folder / name).is_file()
    }
    if is_stripped and REPORT in files:
        files[REPORT] = make_report(
            figures, manifest, None, without_tokenizer="it was not asked", with_provenance=False
        ).encode()
    described = {name: _describe(content) for name, content in files.items()}
    card = make_card(
        figures,
        manifest,
        None if is_stripped else _load_builder(manifest),
        has_picture=PICTURE in files,
        hub=place,
    )
    return PushedView(place, {**manifest, "files": described}, files, card)


def _name_left_out(
    folder: Path, manifest: Mapping[str, Any], *, strips: bool
) -> dict[str, list[str]]:
    """Return the columns and files that stay at home, and those that a pulled set lacks already."""
    already = left_out_of(manifest)
    columns, files = set(already["columns"]), set(already["files"])
    if strips:
        if manifest["seal"]["settings"]["columns"] == "full":
            columns |= set(PROVENANCE_COLUMNS)
        files |= {name for name in _WITH_PROVENANCE if (folder / name).is_file()}
    return {"columns": sorted(columns), "files": sorted(files)}


def _name_of(path: str) -> str:
    """Return the name of a path; a name on the Hub, ``org/name``, as it is."""
    is_on_hub = path.count("/") == 1 and path[0] not in "./~" and not _is_there(path)
    return path if is_on_hub else Path(path).name


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:
        # A name past the limit.
        return False


def _describe(content: Path | bytes) -> dict[str, Any]:
    if isinstance(content, Path):
        return describe_file(content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _load_builder(manifest: Mapping[str, Any]) -> RowBuilder | None:
    """Return the set's tokenizer, or nothing where it does not lie where it lay."""
    try:
        return load_builder(manifest)
    except (UsageError, SealMismatch) as error:
        logger.info("the card shows no row: %s", error)
        return None
