"""Sets and inputs on an object store: ``s3://``, ``gs://`` and ``az://`` addresses, through fsspec.

A store has no rename, so a set there is whole exactly while its manifest is there: the manifest is
removed first and written last. Who comes in between finds no set, never half of one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final, cast

from pipeline.errors import StoreFailed, UsageError
from pipeline.job.publish import MANIFEST, SET_FILES, Target
from pipeline.source.data_sets import READABLE_SUFFIXES

_EXTRAS: Final = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az"}

# What a job of ours may have put to an address before the manifest, Arrow files apart.
_SET_NAMES: Final = SET_FILES | {"dataset_info.json", "state.json"}


def is_address(path: object) -> bool:
    """Say whether ``path`` is on an object store and not in the file system.

    >>> is_address("s3://bucket/set"), is_address("out/set"), is_address("hf://datasets/a/b")
    (True, False, False)
    """
    scheme, mark, _ = str(path).partition("://")
    return bool(mark) and scheme in _EXTRAS


class SetStore:
    """The place of one set on a store. Credentials are those that fsspec's drivers find by themselves."""

    def __init__(self, address: str) -> None:
        """Open ``address``. Raises `UsageError` where its driver is missing or it holds a password."""
        self.address = address.rstrip("/")
        self._files, self._root = _open_files(self.address)

    def read_manifest(self) -> dict[str, Any] | None:
        """Return the manifest, or None where there is no whole set of ours."""
        with self._failures():
            try:
                # Listings and objects may be remembered from before another job wrote.
                self._files.invalidate_cache()
                manifest: object = json.loads(self._files.cat_file(f"{self._root}/{MANIFEST}"))
            except (FileNotFoundError, ValueError):
                return None
        if not isinstance(manifest, dict) or not {"digest", "seal", "files"} <= manifest.keys():
            return None
        return cast("dict[str, Any]", manifest)

    def list_files(self) -> dict[str, int]:
        """Return the size in bytes of every file at the address, by its name there."""
        with self._failures():
            self._files.invalidate_cache()
            try:
                found: dict[str, Any] = self._files.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
        return {name[len(self._root) + 1 :]: int(each["size"]) for name, each in found.items()}

    def put(self, folder: Path) -> None:
        """Replace what is at the address with the set in ``folder``, its manifest last."""
        names = sorted(
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        )
        with self._failures():
            there = self.list_files()
            if MANIFEST in there:
                self._files.rm_file(f"{self._root}/{MANIFEST}")
            for name in there.keys() - names - {MANIFEST}:
                self._files.rm_file(f"{self._root}/{name}")
            for name in (*(name for name in names if name != MANIFEST), MANIFEST):
                self._files.put_file(str(folder / name), f"{self._root}/{name}")

    def fetch(self, folder: Path, names: Iterable[str]) -> None:
        """Write the files ``names`` of the set to ``folder``, which must be free."""
        with self._failures():
            for name in names:
                path = folder / name
                if not path.resolve().is_relative_to(folder.resolve()):
                    raise UsageError(
                        f"{self.address}: its manifest names a file outside of the set"
                    )
                path.parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(f"{self._root}/{name}", str(path))

    def _failures(self) -> AbstractContextManager[None]:
        return _store_failures(self.address)


class StoreTarget(Target):
    """A target on a store: its work and staging folders are in a cache folder of this machine."""

    def __init__(self, address: str) -> None:
        self._store = SetStore(address)
        self._cache = cache_folder(self._store.address)
        super().__init__(str(self._cache / "set"))
        name = self._store.address.rpartition("/")[2]
        # Where the user stands, as nothing is beside an object.
        self.rejects = Path.cwd() / f"{name}.rejects.jsonl"
        self._manifest = self._store.read_manifest()

    @property
    def location(self) -> str:
        """The address of the set."""
        return self._store.address

    @property
    def holds_set(self) -> bool:
        """True where a whole set is at the address."""
        return self._manifest is not None

    def read_whole_set(self) -> dict[str, Any] | None:
        """Return the manifest of the set at the address, if none of its files is missing or cut."""
        if self._manifest is None:
            return None
        sizes = self._store.list_files()
        files: dict[str, Any] = self._manifest["files"]
        is_whole = all(sizes.get(name) == entry["bytes"] for name, entry in files.items())
        return self._manifest if is_whole else None

    def check(self, *, overwrite: bool, inputs: Any = ()) -> None:
        """Refuse an address where something else is. Raises `UsageError`."""
        if self._manifest is None and not overwrite and self._is_foreign():
            raise UsageError(
                f"output: {self.location} holds something that is not a whole set of ours; choose "
                "another address, or --overwrite to replace it"
            )

    def _is_foreign(self) -> bool:
        # A job of ours that was stopped while it wrote leaves files of a set, without a manifest.
        return any(not _is_of_set(name) for name in self._store.list_files())

    def publish(self) -> None:
        """Put the staging folder to the address."""
        self._store.put(self.staging)
        self.clear()


def _is_of_set(name: str) -> bool:
    return name.endswith(".arrow") or name.rpartition("/")[2] in _SET_NAMES


def open_target(output: str) -> Target:
    """Return the target of a job: a folder, or an address on a store."""
    return StoreTarget(output) if is_address(output) else Target(output)


def find_folder(path: str | Path) -> Path:
    """Return the folder of a set; of one on a store a copy, fetched again once the set has changed.

    Raises `UsageError` where there is none at the address, `StoreFailed` where it cannot be read.
    """
    if not is_address(path):
        return Path(path)
    store = SetStore(str(path))
    manifest = store.read_manifest()
    if manifest is None:
        raise UsageError(f"{store.address}: no set there; expected one that prepare wrote")
    copy = cache_folder(store.address) / "copy"
    try:
        if json.loads((copy / MANIFEST).read_bytes()) == manifest:
            return copy
    except (OSError, ValueError):
        pass
    fresh = copy.with_name(f"copy-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        store.fetch(fresh, (*manifest["files"], MANIFEST))
        shutil.rmtree(copy, ignore_errors=True)
        fresh.rename(copy)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return copy


def fetch_inputs(inputs: Sequence[str], folder: Path) -> list[str]:
    """Return the inputs, each address among them (file, folder or glob) as a copy below ``folder``.

    Raises `UsageError` where there is no data file at an address, `StoreFailed` where it cannot be
    read.
    """
    return [
        str(_fetch_input(text, folder / f"store-{number:03d}")) if is_address(text) else text
        for number, text in enumerate(inputs)
    ]


def _fetch_input(address: str, folder: Path) -> Path:
    files, root = _open_files(address)
    with _store_failures(address):
        if any(mark in root for mark in "*?["):
            found: list[str] = files.glob(root)
            base = root[: min(root.find(mark) for mark in "*?[" if mark in root)].rpartition("/")[0]
        elif files.isfile(root):
            found, base = [root], root.rpartition("/")[0]
        else:
            found, base = files.find(root), root
        found = [name for name in found if name.lower().endswith(READABLE_SUFFIXES)]
        if not found:
            raise UsageError(
                f"input {address}: no data file there; expected {', '.join(READABLE_SUFFIXES)}"
            )
        for name in found:
            copy = folder / name[len(base) + 1 :]
            if not copy.resolve().is_relative_to(folder.resolve()):
                raise UsageError(f"input {address}: {name} is no name of a file")
            copy.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(name, str(copy))
    return folder


def _open_files(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    import fsspec

    scheme, _, rest = address.partition("://")
    if "@" in rest.partition("/")[0]:
        raise UsageError(
            f"{scheme}://: an address with a name and a password in it; expected credentials "
            "where the store's own tools look for them (environment or profile)"
        )
    if not rest.strip("/").partition("/")[2]:
        raise UsageError(f"{address}: a whole bucket; expected a place inside it")
    try:
        files: Any = fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"{address}: {error}; "
            f"install its driver: pip install 'context-frozen[{_EXTRAS[scheme]}]'"
        ) from error
    return files, files._strip_protocol(address)


@contextmanager
def _store_failures(address: str) -> Generator[None]:
    try:
        yield
    except (UsageError, StoreFailed):
        raise
    except Exception as error:  # Each driver has errors of its own.
        words = str(error) or type(error).__name__
        raise StoreFailed(
            f"{address}: {words}; check the address, the credentials and the network, then "
            "run again: what was finished is kept"
        ) from error


def cache_folder(address: str) -> Path:
    """Return where this machine keeps what belongs to an address: under ``XDG_CACHE_HOME``, or ~/.cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "context-frozen" / hashlib.sha256(address.encode()).hexdigest()[:16]
