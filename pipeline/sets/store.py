"""Sets and inputs on an object store: ``s3://``, ``gs://`` and ``az://`` addresses, through fsspec.

A store has no rename, so the objects of a set have names of their own, in which the hash of its
manifest stands, and the manifest, which is written last, says which set is at the address
(`pipeline.sets.store_names`). Until then the set that was there is whole; its objects go after that.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, cast

from pipeline.errors import StoreFailed, UsageError
from pipeline.sets.manifest import MANIFEST, lies_inside, write_manifest
from pipeline.sets.place import Target
from pipeline.sets.store_names import (
    Upload,
    is_upload,
    name_object,
    name_objects,
    tag_of,
    view_objects,
)

_EXTRAS: Final = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az"}


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
        self._files, self._root = open_files(self.address)

    def read_manifest(self) -> dict[str, Any] | None:
        """Return the manifest, or None where there is no set of ours."""
        with self._failures():
            try:
                # Listings and objects may be remembered from before another job wrote.
                self._files.invalidate_cache()
                manifest: object = json.loads(self._files.cat_file(f"{self._root}/{MANIFEST}"))
            except (FileNotFoundError, ValueError, RecursionError):
                return None
        if not isinstance(manifest, dict) or not {"digest", "seal", "files"} <= manifest.keys():
            return None
        return cast("dict[str, Any]", manifest)

    def list_files(self) -> dict[str, int]:
        """Return the size in bytes of every object at the address, by its name there."""
        with self._failures():
            self._files.invalidate_cache()
            try:
                found: dict[str, Any] = self._files.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
        return {name[len(self._root) + 1 :]: int(each["size"]) for name, each in found.items()}

    def read_uploads(self, there: Iterable[str]) -> dict[str, Upload]:
        """Return what uploads that are not finished say of themselves, by the name of that object."""
        uploads: dict[str, Upload] = {}
        for name in filter(is_upload, there):
            with self._failures(), suppress(FileNotFoundError):
                upload = Upload.parse(self._files.cat_file(f"{self._root}/{name}"))
                if upload is not None:
                    uploads[name] = upload
        return uploads

    def put(self, folder: Path, *, removes_all: bool = False) -> None:
        """Put the set in ``folder`` in the place of the one at the address.

        Only objects of that one, and of uploads from this machine that were killed, are removed;
        with ``removes_all`` whatever else is at the address too.
        """
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        there = self.list_files()
        objects = {name_object(name, tag_of(manifest)): name for name in manifest["files"]}
        uploads = self.read_uploads(there)
        old = self._name_own(there, uploads, self.read_manifest())
        upload = Upload.of(manifest, self.address, set(there) if removes_all else old)
        with self._failures():
            self._write(upload.name, upload.to_bytes())
            for name, file in objects.items():
                self._send(folder / file, name)
            self._send(folder / MANIFEST, MANIFEST)
        self.finish(manifest, upload)

    def finish(self, manifest: Mapping[str, Any], upload: Upload) -> None:
        """Do what comes after the manifest: the names that `datasets` looks for, the old objects."""
        tag = tag_of(manifest)
        kept = {MANIFEST, *(name_object(name, tag) for name in manifest["files"])}
        with self._failures():
            for name, content in view_objects(manifest, self._read).items():
                self._write(name, content)
                kept.add(name)
            for name in sorted(upload.old - kept):
                self._remove(name)
            self._remove(upload.name)

    def fetch(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Write the set of a manifest to ``folder``, which must be free.

        Raises `FileNotFoundError` where one of its objects is not there: another set may have come.
        """
        there, tag = self.list_files(), tag_of(manifest)
        for name in manifest["files"]:
            path = folder / name
            if not lies_inside(folder, path):
                raise UsageError(f"{self.address}: its manifest names a file outside of the set")
            path.parent.mkdir(parents=True, exist_ok=True)
            named = name_object(name, tag)
            # A folder that somebody copied to the store has the names of a folder.
            found = named if named in there else name
            with self._failures(passes=FileNotFoundError):
                self._files.get_file(f"{self._root}/{found}", str(path))
        (folder / MANIFEST).write_bytes(write_manifest(manifest))

    def is_whole(self, manifest: Mapping[str, Any]) -> bool:
        """Say whether every object of a set is there, of the right size."""
        there, tag = self.list_files(), tag_of(manifest)
        return all(
            there.get(name_object(name, tag), there.get(name)) == entry["bytes"]
            for name, entry in manifest["files"].items()
        )

    def _name_own(
        self,
        there: Collection[str],
        uploads: Mapping[str, Upload],
        manifest: Mapping[str, Any] | None,
    ) -> set[str]:
        """Return the objects that are of the set at the address, or of killed uploads from here."""
        own: set[str] = set()
        if manifest is not None and isinstance(manifest["files"], dict):
            own |= name_objects(manifest, there)
        for name, upload in uploads.items():
            # One of another machine may still run.
            if upload.mark.is_of_this_machine and not upload.mark.is_other_process_running:
                own |= {name, *upload.objects, *upload.old}
        return own & set(there)

    def _read(self, name: str) -> bytes:
        return self._files.cat_file(f"{self._root}/{name}")

    def _send(self, path: Path, name: str) -> None:
        self._files.put_file(str(path), f"{self._root}/{name}")

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._files.rm_file(f"{self._root}/{name}")

    def _write(self, name: str, content: bytes) -> None:
        self._files.pipe_file(f"{self._root}/{name}", content)

    def _failures(self, passes: type[Exception] | None = None) -> AbstractContextManager[None]:
        return store_failures(self.address, passes)


class StoreTarget(Target):
    """A target on a store: its work folder is in a cache folder of this machine."""

    def __init__(self, address: str) -> None:
        self._store = SetStore(address)
        self._cache = cache_folder(self._store.address)
        super().__init__(str(self._cache / "set"))
        name = self._store.address.rpartition("/")[2]
        # Where the user stands, as nothing is beside an object.
        self.rejects = Path.cwd() / f"{name}.rejects.jsonl"
        self._manifest = self._store.read_manifest()
        self._was_put = False

    @property
    def location(self) -> str:
        """The address of the set."""
        return self._store.address

    @property
    def is_published(self) -> bool:
        """True once the new set is at the address."""
        return self._was_put

    @property
    def is_taken(self) -> bool:
        """True where a set, or with leave to replace it something else, is at the address."""
        return self._manifest is not None or self._is_foreign()

    def _read_manifest(self) -> dict[str, Any] | None:
        return self._manifest

    def read_whole_set(self) -> dict[str, Any] | None:
        """Return the manifest of the set at the address, if none of its files is missing or cut."""
        if self._manifest is None:
            return None
        try:
            return self._manifest if self._store.is_whole(self._manifest) else None
        except (KeyError, TypeError, AttributeError):
            return None

    def check(self, *, overwrite: bool, inputs: Any = ()) -> None:
        """Refuse an address where something else is. Raises `UsageError`."""
        self._may_replace_all = overwrite
        if self._manifest is None and not overwrite and self._is_foreign():
            raise UsageError(
                f"output: {self.location} holds something that is not a whole set of ours; choose "
                "another address, or --overwrite to replace it"
            )

    def _is_foreign(self) -> bool:
        # A job of ours that was stopped while it wrote says which objects are its own.
        there = self._store.list_files()
        uploads = self._store.read_uploads(there)
        ours = {name for upload in uploads.values() for name in (*upload.objects, *upload.old)}
        return any(name not in ours and name not in uploads for name in there)

    def _find_strangers(self, manifest: Mapping[str, Any]) -> Generator[str]:
        """Yield nothing: objects that are not of the set stay where they are."""
        yield from ()

    def finish(self) -> None:
        """Finish the upload of the set that is at the address, where it was stopped after its manifest."""
        if self._manifest is None:
            return
        for upload in self._store.read_uploads(self._store.list_files()).values():
            if upload.tag == tag_of(self._manifest):
                self._store.finish(self._manifest, upload)

    def publish(self) -> None:
        """Put the staging folder to the address.

        Raises `UsageError` where a set came to be there that may not be replaced.
        """
        self._manifest = self._store.read_manifest()
        self.check(overwrite=self._may_replace_all)
        if self._origin is not None:
            self.check_origin(self._origin)
        self._store.put(self.staging, removes_all=self._may_replace_all)
        self._was_put = True
        self._manifest = self._store.read_manifest()
        self.clear()


def open_target(output: str) -> Target:
    """Return the target of a job: a folder, or an address on a store."""
    return StoreTarget(output) if is_address(output) else Target(output)


def open_files(address: str) -> tuple[Any, str]:
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
def store_failures(address: str, passes: type[Exception] | None = None) -> Generator[None]:
    """Raise what a driver raises as `StoreFailed`, but for errors of the kind ``passes``."""
    try:
        yield
    except (UsageError, StoreFailed):
        raise
    except Exception as error:  # Each driver has errors of its own.
        if passes is not None and isinstance(error, passes):
            raise
        words = str(error) or type(error).__name__
        raise StoreFailed(
            f"{address}: {words}; check the address, the credentials and the network, then "
            "run again: what was finished is kept"
        ) from error


def cache_folder(address: str) -> Path:
    """Return where this machine keeps what belongs to an address: under ``XDG_CACHE_HOME``, or ~/.cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "context-frozen" / hashlib.sha256(address.encode()).hexdigest()[:16]
