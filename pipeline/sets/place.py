"""Never half a data set: write beside the target, then exchange the folders in one step.

A killed job leaves the old set whole. What an earlier job left beside the target (its staging
folder, or an old set that was being replaced) is put right at the next start. All of it lies in one
folder that carries the mark of the job (`pipeline.sets.marks`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from pipeline.errors import DataRefused, UsageError, excerpt_of
from pipeline.lines.bounded_json import NotThatJson, read_object
from pipeline.sets.disk import exchange_paths, remove_path, sync_file, sync_tree
from pipeline.sets.lock import free_lock, take_lock
from pipeline.sets.manifest import MANIFEST, read_manifest
from pipeline.sets.marks import MARK, find_free_name, make_marked_folder, mark_of, write_mark
from pipeline.sets.output_path import check_path, find_output
from pipeline.sets.rejects_file import NOTE, RejectsFile
from pipeline.sets.seal import find_seal_difference

# What `datasets` writes beside rows that were loaded: the cache of a map, which it can make again.
_MAP_CACHE: Final = re.compile(r"[^/]+/cache-[0-9a-f]{16}(_\d{5}_of_\d{5})?\.arrow")


class Target:
    """The output folder and its neighbours: work folder and lock, all on the same file system.

    ``work`` has the mark of the job, and holds the shards, ``streams`` (copies of what can be read
    only once), ``staging`` (the set that is written), and for a moment the old set.
    """

    def __init__(self, output: str, *, follow_link: bool = True) -> None:
        """Name what lies beside ``output``. Raises `UsageError` for what is no path of a folder."""
        # Where the output is a link, the folder that it points to is replaced and the link stays.
        self.path = find_output(output, follow_link=follow_link)
        parent, name = self.path.parent, self.path.name
        self.work = parent / f".{name}.work"
        self.staging = self.work / "staging"
        self.streams = self.work / "streams"
        self.rejects = parent / f"{name}.rejects.jsonl"
        self._old = self.work / "old"
        self._lock = parent / f".{name}.lock"
        self._may_replace_all = True
        self._origin: Mapping[str, Any] | None = None
        self._staged: os.stat_result | None = None

    @property
    def rejects_file(self) -> RejectsFile:
        """The rejects of the last refused job for this target."""
        return RejectsFile(self.rejects, self.work)

    @property
    def holds_set(self) -> bool:
        """True where a sealed set stands at the output; others have a file of that name too."""
        return self._read_manifest() is not None

    @property
    def location(self) -> Path | str:
        """Where the set will be: its folder, or its address on a store."""
        return self.path

    @property
    def is_published(self) -> bool:
        """True once the new set stands at the output."""
        if self._staged is None:
            return False
        try:
            return os.path.samestat(self.path.stat(), self._staged)
        except OSError:
            return False

    def _read_manifest(self) -> dict[str, Any] | None:
        try:
            manifest = read_object(self.path / MANIFEST)
        except (OSError, NotThatJson):
            return None
        return manifest if "digest" in manifest and "seal" in manifest else None

    def read_whole_set(self) -> dict[str, Any] | None:
        """Return the manifest of the set at the output, if none of its files is missing or cut."""
        try:
            manifest = read_manifest(self.path)
            sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
            is_whole = all(
                (self.path / name).stat().st_size == size for name, size in sizes.items()
            )
        except (OSError, UsageError, DataRefused):
            return None
        return manifest if is_whole else None

    def finish(self) -> None:
        """Finish what a job that was killed after it had published left undone."""

    @property
    def is_taken(self) -> bool:
        """True where something stands at the output that a new set replaces."""
        return self.path.is_dir() and any(self.path.iterdir())

    def count_rows(self) -> int | None:
        """Return how many rows the set at the output says it has; None where there is no set."""
        manifest = self._read_manifest() or {}
        try:
            rows: object = manifest["counts"]["rows"]
        except (KeyError, TypeError):
            return None
        return rows if isinstance(rows, int) else None

    def check(self, *, overwrite: bool, inputs: Sequence[str] = ()) -> None:
        """Refuse a target that must not be replaced, or that lies in a folder of ``inputs``.

        Raises `UsageError`.
        """
        self._may_replace_all = overwrite
        check_path(self.path)
        for item in inputs:
            folder = Path(item).expanduser().absolute()
            if folder.is_dir() and self.path.resolve().is_relative_to(folder.resolve()):
                raise UsageError(
                    f"output: {self.path} lies in the input folder {item}, where the next run would "
                    "read it as input; choose a folder outside"
                )
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"output: {self.path} is a file; expected a folder or a free name")
        if self.path.is_mount():
            raise UsageError(
                f"output: {self.path} is a mount point, which no folder can take the place of; "
                "choose a folder inside it"
            )
        self._check_work()
        if self.is_taken and not self.holds_set and not overwrite:
            raise UsageError(
                f"output: {self.path} holds something that is not a set of ours; "
                "choose another folder, or --overwrite to replace it"
            )

    def check_origin(self, seal: Mapping[str, Any]) -> None:
        """Refuse to replace a set that was not made by the job of ``seal``, or in which others wrote.

        Raises `UsageError` with the key of the seal that differs, or the file, unless the check
        allowed to overwrite.
        """
        self._origin = seal
        manifest = None if self._may_replace_all else self._read_manifest()
        if manifest is None:
            return
        remedy = "choose another output, --append to add to it, or --overwrite to replace it"
        left_out: object = manifest.get("left_out")
        if isinstance(left_out, dict) and any(left_out.values()):
            raise UsageError(
                f"output: {self.location} holds a set that was pulled without its provenance, which "
                "this job did not make; choose another output, or --overwrite to replace it"
            )
        if (difference := find_seal_difference(manifest["seal"], seal)) is not None:
            key, made, found = difference
            raise UsageError(
                f"output: {self.location} holds a set that this job did not make: {key} is "
                f"{excerpt_of(made)} there, and {excerpt_of(found)} here; {remedy}"
            )
        if (stranger := next(self._find_strangers(manifest), None)) is not None:
            raise UsageError(
                f"output: {self.location} holds {excerpt_of(stranger)}, which is not a file of its "
                "set; move it away, or --overwrite to lose it"
            )

    def _find_strangers(self, manifest: Mapping[str, Any]) -> Iterator[str]:
        """Yield the files at the output that its manifest does not name."""
        files: object = manifest.get("files")
        known = {MANIFEST, *(files if isinstance(files, dict) else ())}
        for root, folders, names in os.walk(self.path):
            links = [name for name in folders if Path(root, name).is_symlink()]
            for name in sorted([*names, *links]):
                path = Path(root, name).relative_to(self.path).as_posix()
                if path not in known and not _MAP_CACHE.fullmatch(path):
                    yield path

    @property
    def _is_work_ours(self) -> bool:
        mark = mark_of(self.work)
        return mark is not None and Path(mark.target).name == self.path.name

    def _check_work(self) -> None:
        """Refuse a work folder that no job of ours made. Raises `UsageError`."""
        if os.path.lexists(self.work) and not self._is_work_ours:
            raise UsageError(
                f"output: {self.work} is there, where a job keeps its work, and was not made by "
                f"context-frozen for this output (no {MARK} in it says so); move it away, or choose "
                "another output"
            )

    def check_sources(self, paths: Iterable[Path]) -> None:
        """Refuse to read what replacing the target would remove. Raises `UsageError`."""
        for path in paths:
            real = path.expanduser().resolve()
            if real == self.rejects or real.is_relative_to(self.path):
                raise UsageError(
                    f"output: {path} is read, and lies where {self.path} is written; "
                    "choose an output apart from the inputs"
                )

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the target for one job; the lock ends with the process, however that ends.

        What was not published is removed at the end; finished shards stay for the next run. Raises
        `UsageError` where another job holds it, or the folder beside it cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = take_lock(self._lock, self.path)
        except OSError as error:
            raise self._not_writable(error) from error
        try:
            self._check_work()
            self.clear_staging()
            self._open_work_folder()
            yield
        finally:
            self.clear_staging()
            free_lock(self._lock, lock)

    def _open_work_folder(self) -> None:
        """Make the work folder, or put this process's mark on that of an earlier job."""
        try:
            if os.path.lexists(self.work):
                write_mark(self.work, self.path)
            else:
                make_marked_folder(self.work, self.path)
        except OSError as error:
            raise self._not_writable(error) from error

    def _not_writable(self, error: OSError) -> UsageError:
        return UsageError(
            f"output: {self.path.parent}: {error.strerror}; expected a folder that can be written"
        )

    def open_work(self, name: str) -> Path:
        """Return the folder of this job's shards, with those that a killed job of it had finished.

        What other jobs left is removed. ``name`` tells one job from another. Raises `UsageError`
        where no folder can be made.
        """
        folder = self.work / name
        if not os.path.lexists(self.work):
            self._open_work_folder()
        for path in self.work.iterdir():
            if path.name not in (name, self.streams.name, MARK, NOTE):
                remove_path(path)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise self._not_writable(error) from error
        for path in (*folder.glob(".*"), *folder.glob("tmp*")):
            # Ours, and what a map of `datasets` writes to. A task of a job that was killed may still
            # run, and give its file a name just now.
            path.unlink(missing_ok=True)
        return folder

    def publish(self) -> None:
        """Put the staging folder in the target's place; the old set, if any, is removed after.

        Raises `UsageError` where something came to stand there that may not be replaced.
        """
        sync_tree(self.staging)
        if self._origin is not None:
            self.check(overwrite=self._may_replace_all)
            self.check_origin(self._origin)
        self._staged = self.staging.stat()
        if not self.path.exists():
            self.staging.rename(self.path)
        elif not exchange_paths(self.staging, self.path):
            # No atomic exchange on this file system: `clear_staging` mends a stop between the two.
            self.path.rename(self._old)
            self.staging.rename(self.path)
        sync_file(self.path.parent)
        self.clear()

    def clear(self) -> None:
        """Remove what the job keeps beside the target, but for the note of rejects that are there."""
        self.clear_staging()
        if not self._is_work_ours:
            return
        keeps = {MARK, NOTE} if self.rejects_file.find() is not None else {MARK}
        for path in self.work.iterdir():
            if path.name not in keeps:
                remove_path(path)
        self._remove_empty_work()

    def clear_staging(self) -> None:
        """Remove the set that was not published; finished shards stay for the next run.

        An old set that was moved away for it comes back.
        """
        if not self._is_work_ours:
            return
        if self._old.exists() and not self.path.exists():
            self._old.rename(self.path)
        for folder in (self.staging, self._old, self.streams):
            remove_path(folder)
        self._remove_empty_work()

    def _remove_empty_work(self) -> None:
        if [path.name for path in self.work.iterdir()] == [MARK]:
            remove_marked_folder(self.work)


def remove_marked_folder(folder: Path) -> None:
    """Remove a folder that has our mark, the mark last, so that what a kill leaves is known as ours."""
    for path in folder.iterdir():
        if path.name != MARK:
            remove_path(path)
    with suppress(OSError):
        # In one step, or a kill between the two would leave a folder that nobody knows.
        gone = find_free_name(folder)
        folder.rename(gone)
        (gone / MARK).unlink()
        gone.rmdir()
