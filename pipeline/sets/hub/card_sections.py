"""One ``README.md`` for several configs: each has a section of its own, the rest is left as it is.

A section stands between two comments that name the set's digest. Text of the set cannot hold that
digest, so nothing in a section can end it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import datasets
import yaml
from datasets.info import DatasetInfosDict

from pipeline.errors import UsageError, excerpt_of

if TYPE_CHECKING:
    from huggingface_hub import DatasetCard

_BEGIN: Final = "<!-- context-frozen {config_name} {digest} -->"
_END: Final = "<!-- end of {digest} -->"
_BEGINNING: Final = re.compile(r"<!-- context-frozen ([A-Za-z0-9._-]+) ([0-9a-f]{64}) -->")
# What a set says of itself takes the place of what the card said; lists are joined.
_OF_THE_SET: Final = ("license", "pretty_name")
_JOINED: Final = ("language", "tags", "task_categories")
_BY_CONFIG: Final = ("configs", "dataset_info")


class _Section(NamedTuple):
    config_name: str
    start: int
    end: int


def merge_card(existing: str | None, card: DatasetCard, config_name: str, digest: str) -> str:
    """Return the README of a repository with the section of ``config_name`` put in or replaced.

    ``existing`` is the README that is there. What it says outside of our sections stays, and so do
    its YAML keys that the set says nothing of. Raises `UsageError` where its YAML cannot be read.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    section = "\n".join(
        [
            _BEGIN.format(config_name=config_name, digest=digest),
            str(card.text).strip("\n"),
            _END.format(digest=digest),
        ]
    )
    data: dict[str, Any] = card.data.to_dict()
    if existing is None:
        return f"---\n{DatasetCardData(**data).to_yaml()}\n---\n\n{section}\n"
    try:
        old = DatasetCard(existing)
    except (ValueError, yaml.YAMLError) as error:
        raise _unreadable(error) from error
    body = str(old.text)
    sections = list(_find_sections(body))
    is_alone = all(each.config_name == config_name for each in sections) and bool(sections)
    merged = _merge_data(old.data.to_dict(), data, config_name, is_alone=is_alone)
    for each in sections:
        if each.config_name == config_name:
            body = body[: each.start] + section + body[each.end :]
            break
    else:
        body = f"{body.rstrip()}\n\n{section}\n"
    return f"---\n{DatasetCardData(**merged).to_yaml()}\n---\n{body}"


def describe_rows(
    config_name: str, splits: Mapping[str, datasets.Dataset], download_size: int
) -> dict[str, Any]:
    """Return the ``dataset_info`` of a card, as `push_to_hub` writes it: columns, splits, bytes."""
    from huggingface_hub import DatasetCardData

    sizes: dict[str, int] = {name: cast("Any", rows).data.nbytes for name, rows in splits.items()}
    info = datasets.DatasetInfo(
        features=next(iter(splits.values())).features,
        splits={  # type: ignore[arg-type]
            name: {"name": name, "num_bytes": sizes[name], "num_examples": len(rows)}
            for name, rows in splits.items()
        },
        download_size=download_size,
        dataset_size=sum(sizes.values()),
    )
    data = DatasetCardData()
    DatasetInfosDict({config_name: info}).to_dataset_card_data(data)
    return data.to_dict()["dataset_info"]


def holds_sections(existing: str | None) -> bool:
    """Return True where a README has a section of ours."""
    return next(_find_sections(existing or ""), None) is not None


def read_configs(existing: str | None) -> list[str]:
    """Return the names of the configs that a README's YAML lists. Raises `UsageError` as `merge_card`."""
    from huggingface_hub import DatasetCard

    try:
        data = DatasetCard(existing or "---\n{}\n---\n").data.to_dict()
    except (ValueError, yaml.YAMLError) as error:
        raise _unreadable(error) from error
    return [_name_of(each) for each in _as_list(data.get("configs")) if isinstance(each, dict)]


def _find_sections(body: str) -> Iterator[_Section]:
    at = 0
    while (begin := _BEGINNING.search(body, at)) is not None:
        config_name, digest = begin.groups()
        end = _END.format(digest=digest)
        place = body.find(end, begin.end())
        if place < 0:
            # Its end was edited away: nobody can say where it ends.
            at = begin.end()
            continue
        at = place + len(end)
        yield _Section(config_name, begin.start(), at)


def _merge_data(
    old: Mapping[str, Any], new: Mapping[str, Any], config_name: str, *, is_alone: bool
) -> dict[str, Any]:
    merged = dict(old)
    for name, value in new.items():
        if name in _JOINED:
            merged[name] = list(dict.fromkeys([*_as_list(old.get(name)), *_as_list(value)]))
        elif name in _OF_THE_SET or is_alone or name not in old:
            merged[name] = value
    for name in _BY_CONFIG:
        # What an earlier push said of the config: its columns may be others now.
        entries = [each for each in _as_list(old.get(name)) if isinstance(each, dict)]
        kept = [each for each in entries if _name_of(each) != config_name]
        merged.pop(name, None)
        # `datasets` leaves the name `default` out of a single entry, and asks for it in a list.
        if entries := [*kept, *_as_list(new.get(name))]:
            merged[name] = [{"config_name": _name_of(each), **each} for each in entries]
    return merged


def _name_of(config: Mapping[str, Any]) -> str:
    return str(config.get("config_name", "default"))


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _unreadable(error: Exception) -> UsageError:
    return UsageError(
        f"README.md of the repository: {excerpt_of(str(error))}; expected YAML between --- and ---: "
        "mend it there first"
    )
