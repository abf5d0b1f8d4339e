"""Licences and known holes of everything that the wheel brings along.

``python scripts/audit_dependencies.py`` lists each dependency with its licence and ends with 1 where
one is not known to go with Apache-2.0. ``--write FILE.md`` keeps the list; ``--holes``
also asks pip-audit (``pip install pip-audit``) about the pinned releases.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("train", "harmony")
"""Extras whose dependencies are listed too: those that training needs."""

# Licences whose code may be used beside Apache-2.0 without terms for ours.
_COMPATIBLE = re.compile(
    r"Apache|MIT|BSD|ISC|PSF|Python Software Foundation|Zlib|Unlicense|0BSD|CC0|MPL|Mozilla",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Dependency:
    """An installed distribution: its name, release, licence, and who asks for it."""

    name: str
    version: str
    licence: str
    asked_for_by: str

    @property
    def is_compatible(self) -> bool:
        """True where the licence goes with Apache-2.0."""
        return _COMPATIBLE.search(self.licence) is not None


def find_dependencies() -> list[Dependency]:
    """Return what the wheel needs, directly or not, sorted by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = list(project["dependencies"])
    for extra in EXTRAS:
        asked += project["optional-dependencies"][extra]
    found: dict[str, Dependency] = {}
    waiting = [(Requirement(text), "context-frozen") for text in asked]
    while waiting:
        requirement, by = waiting.pop(0)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            # For another system or Python.
            continue
        found[name] = Dependency(name, distribution.version, licence_of(distribution), by)
        waiting += [(each, name) for each in _needed(distribution.requires or (), requirement)]
    return [found[name] for name in sorted(found)]


def _needed(requires: Iterable[str], asked: Requirement) -> Iterator[Requirement]:
    for text in requires:
        requirement = Requirement(text)
        extras = asked.extras or {""}
        if not requirement.marker or any(
            requirement.marker.evaluate({"extra": extra}) for extra in extras
        ):
            yield requirement


def licence_of(distribution: metadata.Distribution) -> str:
    """Return the licence that a distribution names: as SPDX, by classifier, or in words."""
    fields = distribution.metadata
    if expression := fields.get("License-Expression"):
        return expression
    names = [
        classifier.rpartition(" :: ")[2]
        for classifier in fields.get_all("Classifier") or ()
        if classifier.startswith("License :: ") and not classifier.endswith("OSI Approved")
    ]
    if names:
        return ", ".join(names)
    words = (fields.get("License") or "").strip()
    return words.splitlines()[0][:60] if words else _licence_in_file(distribution)


def _licence_in_file(distribution: metadata.Distribution) -> str:
    for file in distribution.files or ():
        if re.match(r"LICEN[CS]E", file.name, re.IGNORECASE):
            text = file.read_text() or ""
            for known in ("Apache License", "MIT License", "BSD", "Permission is hereby granted"):
                if known in text:
                    return "MIT" if known.startswith("Permission") else known
    return "unknown"


def format_page(dependencies: Iterable[Dependency]) -> str:
    """Return the page that lists the dependencies, as Markdown."""
    rows = "\n".join(
        f"| {each.name} | {each.version} | {each.licence} | {each.asked_for_by} |"
        for each in dependencies
    )
    return (
        "# Dependencies and their licences\n\n"
        "What the wheel and its extras `train` and `harmony` bring along, in the releases of\n"
        "`constraints.txt`. Made by `python scripts/audit_dependencies.py --write FILE.md`;\n"
        "every licence goes with Apache-2.0.\n\n"
        f"| package | release | licence | asked for by |\n|---|---|---|---|\n{rows}\n"
    )


def main() -> int:
    """List, check and keep; return 1 for a licence that is not known to be compatible, or a hole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--holes", action="store_true")
    options = parser.parse_args()
    dependencies = find_dependencies()
    page = format_page(dependencies)
    if options.write:
        options.write.write_text(page, encoding="utf-8")
    else:
        print(page)
    wrong = [each for each in dependencies if not each.is_compatible]
    for each in wrong:
        print(f"{each.name} {each.version}: licence {each.licence!r}", file=sys.stderr)
    holes = 0
    if options.holes:
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip"]
        holes = subprocess.run(
            [*command, "--requirement", str(ROOT / "constraints.txt")], check=False
        ).returncode
    return 1 if wrong or holes else 0


if __name__ == "__main__":
    sys.exit(main())
