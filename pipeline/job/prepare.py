"""The whole job: lock the target, seal the inputs, answer at once where nothing changed, else build.

What is heavy (transformers, datasets) is imported only when rows have to be made.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.config import PrepareConfig, config_from_mapping
from pipeline.errors import (
    DataRefused,
    StoreFailed,
    UsageError,
    WorkerFailed,
    escape_controls,
)
from pipeline.job.prepared import Prepared
from pipeline.lines.data_sets import expand_data_sets
from pipeline.lines.files import SourceFile, find_files, spool_streams
from pipeline.lines.plan import plan_shards
from pipeline.sets.copies import fetch_inputs
from pipeline.sets.place import Target
from pipeline.sets.seal import make_seal
from pipeline.sets.store import is_address, open_target
from pipeline.view.stages import show_stage

if TYPE_CHECKING:
    from pipeline.rows.row_map import RowMap

# What no seal holds and a set's card says.
_ON_THE_CARD: Final = ("license", "language", "pretty_name")


def prepare(
    config: PrepareConfig | None = None, *, quiet: bool = False, **settings: Any
) -> Prepared:
    """Turn JSONL examples into a sealed Arrow data set at ``config.output``; print what was made.

    Settings may be given as keywords instead; ``quiet`` prints nothing. A target that already holds
    the set of this seal is left as it is; one that another job made is replaced only under
    ``overwrite``. Raises `UsageError` for wrong settings or paths, `UnreadableFile` for a file that
    cannot be read to its end, and `DataRefused` where more than ``max_reject_rate`` of the lines were
    rejected (they are then in ``OUTPUT.rejects.jsonl``, and nothing is published).

    Example::

        rows = prepare(input="logs.jsonl", tokenizer="org/model", output="out/set").load()["train"]
    """
    if config is not None and settings:
        raise UsageError(
            f"prepare: found a config and {', '.join(settings)}; "
            "expected one or the other (dataclasses.replace makes a changed config)"
        )
    prepared = _prepare(config or config_from_mapping(settings, "prepare"))
    if not quiet:
        print(escape_controls(prepared.summarize(), keep="\n"))
    return prepared


def _prepare(config: PrepareConfig) -> Prepared:
    if config.append and is_address(config.output):
        raise UsageError(
            f"append: {config.output} is on a store, where no file is added to; append to a set in a "
            "folder, or prepare all input again"
        )
    target = open_target(config.output)
    target.check(overwrite=config.overwrite, inputs=config.input)
    with target.locked():
        found = find_files(expand_data_sets(fetch_inputs(config.input, target.streams)))
        target.check_sources([file.path for file in found])
        target.check_sources(map(Path, filter(None, (config.tokenizer, config.chat_template))))
        files = _copy_streams(found, target)
        with ThreadPoolExecutor(1) as other:
            # The tokenizer is loaded while the input is hashed, where no set stands that may do.
            loading = None if target.holds_set else other.submit(_load_row_map, config, files)
            plan = plan_shards(files)
            seal = make_seal(config, plan.sha256)
            if (ready := _find_ready(config, target, seal)) is not None:
                target.finish()
                target.clear()
                return ready
            if not config.append:
                target.check_origin(seal)
            before, stands = target.count_rows(), target.is_taken
            show_stage(f"loading the tokenizer {config.tokenizer}")
            row_map = loading.result() if loading else _load_row_map(config, files)
        from pipeline.job.build import build_set

        try:
            manifest, added = build_set(config, target, files, plan, seal, row_map)
            target.clear()
        except KeyboardInterrupt:
            published = target.read_whole_set() if target.is_published else None
            if published is None:
                target.clear_staging()
                raise
            # It came while the rest was put away: the job is done.
            manifest, added = published, published["counts"]["rows"] - (before or 0)
            target.clear()
        except (DataRefused, WorkerFailed, StoreFailed):
            target.clear_staging()
            raise
        except BaseException:
            target.clear()
            raise
    done = "replaced" if stands else "made"
    if config.append:
        done = "added" if target.is_published else "unchanged"
    return Prepared(target.location, manifest, done, rows_before=before, rows_added=added)


def _load_row_map(config: PrepareConfig, files: Sequence[SourceFile]) -> RowMap:
    from pipeline.job.shards import load_row_map

    return load_row_map(config, files)


def _copy_streams(files: Sequence[SourceFile], target: Target) -> list[SourceFile]:
    """Return the files, each that can be read only once copied beside the target.

    Raises `UsageError` where there is no room.
    """
    try:
        return spool_streams(files, target.streams)
    except OSError as error:
        raise UsageError(
            f"output: {target.path.parent}: {error.strerror or error}; standard input and pipes are "
            "copied there first, which takes as many bytes as they have; make room, or give a file"
        ) from error


def _find_ready(config: PrepareConfig, target: Target, seal: dict[str, Any]) -> Prepared | None:
    """Return the set at the target where it is whole, of this seal and card, with few enough faults."""
    manifest = target.read_whole_set() if target.holds_set else None
    try:
        if manifest is None or manifest["seal"]["key"] != seal["key"]:
            return None
        said = config.to_dict()
        if any(manifest["config"].get(name, said[name]) != said[name] for name in _ON_THE_CARD):
            return None
        counts = manifest["counts"]
        is_accepted = counts["faults"] <= config.max_reject_rate * counts["points"]
    except (KeyError, TypeError):
        return None
    return Prepared(target.location, manifest, "unchanged") if is_accepted else None
