"""Write the settings of each verb from the fields of its options: docs/generated/settings.md has those
of ``prepare``, docs/cli.md the flags of the others.

Run as ``python -m scripts.table_of_settings`` after a setting was added or its words were changed.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from pipeline.cli.checking import CheckOptions, VerifyOptions
from pipeline.cli.options import is_positional
from pipeline.cli.preparing import CleanOptions
from pipeline.cli.seeing import DiffOptions, InspectOptions, ReportOptions
from pipeline.cli.sharing import PullOptions, PushOptions
from pipeline.cli.words import read_field_words
from pipeline.config import PrepareConfig

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
PAGE: Final = DOCS / "cli.md"
SETTINGS_PAGE: Final = DOCS / "generated" / "settings.md"
OPTIONS: Final[dict[str, type[Any]]] = {
    "prepare": PrepareConfig,
    "inspect": InspectOptions,
    "check": CheckOptions,
    "verify": VerifyOptions,
    "report": ReportOptions,
    "diff": DiffOptions,
    "push": PushOptions,
    "pull": PullOptions,
    "clean": CleanOptions,
}
"""The settings of each verb."""

_COMPUTED_DEFAULTS: Final = {"num_proc": "the cores"}
_PLACE: Final = re.compile(
    r"(?P<start><!-- settings of (?P<verb>\w+) -->\n).*?(?=<!-- end of settings -->)", re.S
)


def fill_page(page: str) -> str:
    """Return the text of the page with the flags of each verb written anew between two comments."""
    return _PLACE.sub(
        lambda place: f"{place['start']}\n{write_flags(OPTIONS[place['verb']])}\n", page
    )


def write_settings_page() -> str:
    """Return the page of all settings of ``prepare``."""
    return f"""# Settings of prepare

Written by `python -m scripts.table_of_settings`. Each is a key of YAML, a flag, and a keyword of
`pipeline.prepare`. `input` and `output` aside, those up to `on_duplicate` are sealed and are keywords of
`RowMap` too; those from `max_reject_rate` on are of the job.

{write_list(PrepareConfig)}"""


def write_list(kind: type[Any]) -> str:
    """Return the list of a verb's settings: name with default, what it does and may be."""
    words = read_field_words(kind)
    hints = get_type_hints(kind, include_extras=True)
    lines: list[str] = []
    for item in _fields_of(kind):
        default = _spell_default(item)
        name = f"`{item.name}` ({default})" if default != "none" else f"`{item.name}`"
        lines.append(
            f"- {name}: {words[item.name]}{_missing_choices(hints[item.name], words[item.name])}"
        )
    return "\n".join(lines) + "\n"


def write_flags(kind: type[Any]) -> str:
    """Return the places and flags of a verb in one paragraph, each flag with its default or its choices."""
    hints = get_type_hints(kind, include_extras=True)
    spelt: list[str] = []
    for item in _fields_of(kind):
        if is_positional(item):
            spelt.append(f"`{item.name.upper()}`")
            continue
        default, choices = _spell_default(item).strip("`"), _choices(hints[item.name])
        value = "|".join(re.findall(r"`(\w+)`", choices)) or default
        flag = f"--{item.name}" if value in ("none", "false") else f"--{item.name} {value}"
        spelt.append(f"`{flag}`")
    return textwrap.fill(", ".join(spelt) + ".", 108, break_on_hyphens=False) + "\n"


def _fields_of(kind: type[Any]) -> list[dataclasses.Field[Any]]:
    """Return the fields in the order of the classes that ``kind`` names, required ones first."""
    order = {
        name: place
        for place, owner in enumerate(kind.__mro__)
        for name in vars(owner).get("__annotations__", {})
    }
    return sorted(
        dataclasses.fields(kind),
        key=lambda item: (_spell_default(item) != "required", order[item.name]),
    )


def _spell_default(item: dataclasses.Field[Any]) -> str:
    if item.name in _COMPUTED_DEFAULTS:
        return _COMPUTED_DEFAULTS[item.name]
    default: Any = item.default
    if item.default_factory is not dataclasses.MISSING:
        default = item.default_factory()
    if default is dataclasses.MISSING:
        return "required"
    if default is None or default == ():
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return f"`{' '.join(map(str, default)) if isinstance(default, tuple) else default}`"


def _missing_choices(hint: Any, words: str) -> str:
    """Return the choices, or nothing where the sentence names each of them."""
    choices = _choices(hint)
    named = all(re.search(rf"\b{each}\b", words) for each in re.findall(r"`(\w+)`", choices))
    return "" if named else choices


def _choices(hint: Any) -> str:
    for part in (hint, *get_args(hint)):
        if get_origin(part) is Literal:
            return " One of " + ", ".join(f"`{choice}`" for choice in get_args(part)) + "."
    return ""


if __name__ == "__main__":
    PAGE.write_text(fill_page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    SETTINGS_PAGE.write_text(write_settings_page(), encoding="utf-8")
