"""The seal: the record of all that determined the tokens of a set, and its comparison.

Two sets with the same seal hold the same tokens. The part made from files, settings and versions
(`seal_key`) is cheap, so a finished job is recognised without loading a tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, cast

from pipeline.config import RowSettings
from pipeline.errors import SealMismatch, shorten_middle
from pipeline.rows.seal import hash_json, make_row_seal

if TYPE_CHECKING:
    from pipeline.prompt.chat_template import ChatTemplates
    from pipeline.tokens.encoder import TextEncoder

_NAME_CHARACTERS = 50
_DIGITS = 12
_REMEDY = "use the tokenizer that the set was made with, or prepare it again"


def make_seal(settings: RowSettings, files: Mapping[str, str]) -> dict[str, Any]:
    """Return the cheap part of the seal.

    ``files`` maps the name of each input file to the sha256 of its bytes on disk. Raises
    `UsageError` where the tokenizer or the template file is missing.
    """
    named = [{"name": name, "sha256": digest} for name, digest in files.items()]
    return seal_input(make_row_seal(settings), named)


def seal_input(row_seal: Mapping[str, Any], named: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return the seal of rows from the input ``named``, entries of a name and a sha256."""
    seal = {**row_seal, "input": list(named)}
    return {**seal, "key": hash_seal(seal)}


def hash_seal(seal: Mapping[str, Any]) -> str:
    """Return the key of a seal, complete or not: the hash of its cheap part."""
    names = ("format", "input", "chat_template", "server", "settings", "versions")
    tokenizer = {"files": seal["tokenizer"]["files"]}
    return hash_json({**{name: seal[name] for name in names}, "tokenizer": tokenizer})


def find_seal_difference(made: object, found: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Return the first key at which a saved seal differs from that of a job, and both values.

    Only what makes the key of a seal is compared; None where that is equal.
    """
    if not isinstance(made, dict):
        return "seal", made, found["key"]
    saved = cast("dict[str, Any]", made)
    here = {**found, "tokenizer": {"files": found["tokenizer"]["files"]}}
    there = {name: saved.get(name) for name in here}
    if isinstance(there["tokenizer"], dict):
        there["tokenizer"] = {"files": there["tokenizer"].get("files")}
    return next(find_differences("seal", there, here), None)


def find_differences(
    key: str, planned: object, here: object
) -> Iterator[tuple[str, object, object]]:
    """Yield the innermost keys at which two parts of a seal differ, with both values.

    >>> made = [{"name": "a"}, {"name": "b"}]
    >>> list(find_differences("seal.input", made, made[:1]))
    [('seal.input[1]', {'name': 'b'}, None)]

    Of a seal and of its tokenizer only what ``here`` has is compared: a seal that was completed has
    more. Its ``key`` follows from the rest.
    """
    if isinstance(planned, list) and isinstance(here, list):
        both = zip_longest(cast("list[object]", planned), cast("list[object]", here))
        for at, (one, other) in enumerate(both):
            yield from find_differences(f"{key}[{at}]", one, other)
        return
    if not isinstance(planned, dict) or not isinstance(here, dict):
        if planned != here:
            yield key, planned, here
        return
    left, right = cast("dict[str, Any]", planned), cast("dict[str, Any]", here)
    for name in right if key in ("seal", "seal.tokenizer") else {**left, **right}:
        if name != "key":
            yield from find_differences(f"{key}.{name}", left.get(name), right.get(name))


def complete_seal(
    seal: Mapping[str, Any], encoder: TextEncoder, templates: ChatTemplates
) -> dict[str, Any]:
    """Return the seal with what only a loaded tokenizer can tell: its ids and its templates."""
    return {
        **seal,
        "tokenizer": {**seal["tokenizer"], **describe_encoder(encoder)},
        "templates": templates.sha256_by_name,
    }


def describe_encoder(encoder: TextEncoder) -> dict[str, Any]:
    """Return what a loaded tokenizer is known by: class, number of ids, hash of its backend's state."""
    return {
        "class": type(encoder.tokenizer).__name__,
        "vocabulary_size": encoder.vocabulary_size,
        "backend_sha256": encoder.state_sha256,
    }


def check_tokenizer(
    seal: Mapping[str, Any], encoder: TextEncoder, templates: ChatTemplates, made_with: str = ""
) -> None:
    """Refuse a tokenizer or template that is not the one the set was made with.

    ``made_with`` is the place of that one, by which an error names it. Raises `SealMismatch` with the
    key that differs.
    """
    check_encoder(seal, encoder, made_with)
    found = templates.sha256_by_name
    if seal["chat_template"] is None and seal["templates"] != found:
        raise SealMismatch(
            "seal.templates",
            _spell(made_with, seal["templates"]),
            _spell(_name_of(encoder), found),
            _REMEDY,
        )


def check_encoder(seal: Mapping[str, Any], encoder: TextEncoder, made_with: str = "") -> None:
    """Refuse a tokenizer whose ids are not those of the set. Raises `SealMismatch`."""
    # The class may differ: equal backends give equal ids under any class.
    made: str = seal["tokenizer"]["backend_sha256"]
    found: str = describe_encoder(encoder)["backend_sha256"]
    if made != found:
        raise SealMismatch(
            "seal.tokenizer.backend_sha256",
            _spell(made_with, made),
            _spell(_name_of(encoder), found),
            _REMEDY,
        )


def _name_of(encoder: TextEncoder) -> str:
    return str(encoder.folder or encoder.tokenizer.name_or_path or type(encoder.tokenizer).__name__)


def _spell(name: str, hashes: str | Mapping[str, str]) -> str:
    """Return the name of a tokenizer, and then the beginning of what it is known by."""
    if isinstance(hashes, str):
        known_by = hashes[:_DIGITS]
    else:
        known_by = ", ".join(f"{key} {value[:_DIGITS]}" for key, value in hashes.items()) or "none"
    return f"{shorten_middle(name, _NAME_CHARACTERS)} ({known_by})" if name else known_by
