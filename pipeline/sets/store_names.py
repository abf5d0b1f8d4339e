"""How a set lies on an object store: the names of its objects, and what an upload says of itself.

``TAG`` is the hash of the manifest. A file of rows ``train/data-....arrow`` is the object
``train/TAG/data-....arrow``, any other file ``NAME`` is ``TAG/NAME``, so that a new set shares no object
with the one that it replaces. ``dataset_dict.json``, ``train/state.json`` and
``train/dataset_info.json`` are there besides, under the names that `datasets` looks for, and lead to
the rows of the set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, cast

from pipeline.rows.seal import hash_json
from pipeline.sets.marks import Mark

_UPLOAD_NAME: Final = ".upload-{}.json"
_UPLOAD_ENDS: Final = _UPLOAD_NAME.split("{}")
_VIEWS: Final = ("dataset_dict.json", "state.json", "dataset_info.json")


def tag_of(manifest: Mapping[str, Any]) -> str:
    """Return what the objects of a set are known by."""
    return hash_json(manifest)[:16]


def name_object(name: str, tag: str) -> str:
    """Return the name of the object of a file of a set.

    >>> name_object("train/data-00000-of-00001.arrow", "0123"), name_object("train/state.json", "0123")
    ('train/0123/data-00000-of-00001.arrow', '0123/train/state.json')
    """
    split, _, file = name.rpartition("/")
    return f"{split}/{tag}/{file}" if split and file.endswith(".arrow") else f"{tag}/{name}"


def name_objects(manifest: Mapping[str, Any], there: Collection[str]) -> set[str]:
    """Return the objects of a set, of those that are at its address.

    A folder that somebody copied to the store has the names of a folder.
    """
    tag, names = tag_of(manifest), set[str]()
    for name in manifest["files"]:
        named = name_object(name, tag)
        if named not in there or name.rpartition("/")[2] in _VIEWS:
            names.add(name)
        names.add(named)
    return names


def view_objects(manifest: Mapping[str, Any], read: Callable[[str], bytes]) -> dict[str, bytes]:
    """Return what `datasets` reads at the address itself, by name; ``read`` returns an object."""
    tag, views = tag_of(manifest), dict[str, bytes]()
    for name in manifest["files"]:
        if name.rpartition("/")[2] not in _VIEWS:
            continue
        content = read(name_object(name, tag))
        if name.endswith("/state.json"):
            state: dict[str, Any] = json.loads(content)
            for each in state["_data_files"]:
                each["filename"] = f"{tag}/{each['filename']}"
            content = (json.dumps(state, indent=2, sort_keys=True) + "\n").encode()
        views[name] = content
    return views


def is_upload(name: str) -> bool:
    """Say whether an object is what an upload says of itself, by its name alone."""
    return name.startswith(_UPLOAD_ENDS[0]) and name.endswith(_UPLOAD_ENDS[1])


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload that is not finished: who makes it, its objects, and the old ones that go after it."""

    tag: str
    mark: Mark
    objects: frozenset[str]
    old: frozenset[str]

    @classmethod
    def of(cls, manifest: Mapping[str, Any], address: str, old: Iterable[str]) -> Self:
        """Return the upload of a set from this process."""
        tag = tag_of(manifest)
        objects = frozenset(name_object(name, tag) for name in manifest["files"])
        return cls(tag, Mark.of_this_process(address), objects, frozenset(old) - objects)

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """Return the upload that ``data`` tells of, or None where it is none of ours."""
        mark = Mark.parse(data)
        if mark is None:
            return None
        # A mark is read of a JSON object only, so this is one.
        values: object = json.loads(data)
        found = cast("dict[str, Any]", values)
        lists = [found.get("objects"), found.get("old")]
        names = [
            name for each in lists if isinstance(each, list) for name in cast("list[Any]", each)
        ]
        is_whole = all(isinstance(each, list) for each in lists)
        if not is_whole or not all(isinstance(name, str) for name in [*names, found.get("tag")]):
            return None
        return cls(found["tag"], mark, frozenset(found["objects"]), frozenset(found["old"]))

    @property
    def name(self) -> str:
        """The name of the object that tells of the upload."""
        return _UPLOAD_NAME.format(self.tag)

    def to_bytes(self) -> bytes:
        """Return that object."""
        told = {"tag": self.tag, "objects": sorted(self.objects), "old": sorted(self.old)}
        return (json.dumps({**json.loads(self.mark.to_bytes()), **told}) + "\n").encode()
