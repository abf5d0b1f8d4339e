"""The pages of the project as the tests read them: blocks of code, spans of code, links."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(
    r"(?P<comments>(?:^<!-- [^\n]* -->\n\n?)*)^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, and what the comments above it say."""

    page: str
    line: int
    language: str
    text: str
    reason: str
    """Why it is not run; empty where it is."""
    exit_code: int

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The command lines: all of them, or of a console those behind ``$``; lines joined at ``\\``."""
        if self.language not in ("bash", "sh", "console"):
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        return [line for line in lines if shlex.split(line, comments=True)]

    @property
    def answers(self) -> list[tuple[str, list[str]]]:
        """Of a console: each command with the lines that it is said to print."""
        parts = re.split(r"^\$ (.*)\n", self.text, flags=re.M)[1:]
        return [
            (command, [line for line in output.splitlines() if line.strip()])
            for command, output in zip(parts[::2], parts[1::2], strict=True)
        ]


def read_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page. One without a language whose first line has a ``$`` is a console."""
    text = page.read_text(encoding="utf-8")
    return [_read_block(page.name, text, found) for found in _FENCE.finditer(text)]


def _read_block(page: str, text: str, found: re.Match[str]) -> Block:
    reason = re.search(r"<!-- not run: (.+?) -->", found["comments"])
    ends_with = re.search(r"<!-- ends with (\d+) -->", found["comments"])
    is_console = not found["language"] and found["text"].startswith("$ ")
    return Block(
        page,
        text.count("\n", 0, found.start("language")) + 1,
        "console" if is_console else found["language"],
        found["text"],
        reason[1] if reason else "",
        int(ends_with[1]) if ends_with else 0,
    )


def read_prose(page: Path) -> str:
    """Return the text of a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def code_spans(text: str) -> list[str]:
    """Return what stands between backticks, each on one line."""
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def split_commands(line: str) -> Iterator[list[str]]:
    """Yield the words of each command of a line, without what stands in front of its name."""
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word in ("&&", "|"):
            yield words
            words = []
        else:
            words.append(word)


def tables_of(text: str) -> Iterator[list[list[str]]]:
    """Yield the tables of a text: the cells of each row below the heading."""
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        rows = [
            [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in table.splitlines()
        ]
        yield rows[2:]


def heads_of(text: str) -> list[str]:
    """Return the code span that an item of a list begins with and that a colon ends, of every such item."""
    items = re.findall(r"^- `([^`]+)`:\s", text, re.M)
    return [" ".join(item.split()) for item in items]


@cache
def texts_of_the_sources() -> tuple[str, ...]:
    """Return every text of the package's code; what is filled in while it runs is an ellipsis."""
    found: list[str] = []
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                found.append("".join(map(str, parts)))
    return tuple(found)
