"""Print the end of turn of every chat template in a folder, as Markdown.

Run as ``python -m scripts.table_of_turns FOLDER_OF_JINJA_FILES``. All is learnt from renders, without a
tokenizer: a control token is known by its shape, and there are no stop ids. ``eos_token`` is what the
tokenizer names so; docs/server-parity.md explains the columns and shows some of the lines.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.answer.probe import probe_turns
from pipeline.answer.turn import TurnFacts
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.plain import PlainDialect

# A template knows these by name alone, so the table names them so.
SPECIAL_TOKENS = {
    name: f"<|{name}|>" for name in ("bos_token", "eos_token", "pad_token", "unk_token")
}
# Variables that two of the templates take from their tokenizer or their caller.
MORE_VARIABLES = {
    "additional_special_tokens": [f"<|additional_special_tokens[{index}]|>" for index in range(8)],
    "functions": "[]",
    "datetime": "2024-07-26",
}

PLACEHOLDERS = {*SPECIAL_TOKENS.values(), *MORE_VARIABLES["additional_special_tokens"]}


def probe_folder(folder: Path) -> dict[str, TurnFacts]:
    """Return the facts of each ``NAME.jinja`` in ``folder``, by name."""
    facts: dict[str, TurnFacts] = {}
    for path in sorted(folder.glob("*.jinja")):
        templates = ChatTemplates({"default": path.read_text(encoding="utf-8")}, SPECIAL_TOKENS)
        found = probe_turns(PlainDialect(), templates, {})
        if found.end_of_turn is None and "refused" in found.evidence:
            found = probe_turns(PlainDialect(), templates, MORE_VARIABLES)
        facts[path.stem] = found
    return facts


def format_page(facts: dict[str, TurnFacts]) -> str:
    """Return the counts, the templates without an answer, and the table."""
    unknown = {name: item for name, item in facts.items() if item.end_of_turn is None}
    lines = [
        f"{count_answers(facts)}\n",
        "## Cannot tell\n",
        "| template | why |",
        "|---|---|",
        *(f"| {name} | {item.evidence.split(' (')[0]} |" for name, item in unknown.items()),
        "\n## All\n",
        "| template | end of turn | calls | around an answer | thought | closed by |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(_cells(name, item))} |" for name, item in facts.items()),
    ]
    return "\n".join(lines) + "\n"


def count_answers(facts: dict[str, TurnFacts]) -> str:
    """Return the sentence that counts the templates."""
    known = sum(item.end_of_turn is not None for item in facts.values())
    return f"{len(facts)} templates: {known} known, {len(facts) - known} cannot tell."


def _cells(name: str, facts: TurnFacts) -> Iterator[str]:
    yield name
    yield _code(facts.end_of_turn) if facts.end_of_turn else "cannot tell"
    same = facts.tool_end == facts.end_of_turn
    yield "" if facts.tool_end is None else "=" if same else _code(facts.tool_end)
    around = [part for part in (facts.opening.strip(), facts.closing) if part]
    yield " … ".join(map(_code, around))
    yield " ".join(map(_code, facts.think_pair or ()))
    yield _code(facts.think_closing) if facts.prompt_opens_think else ""


def _code(text: str) -> str:
    if text in PLACEHOLDERS:
        return text.strip("<|>")
    return f"`{text}`".replace("|", "\\|").replace("\n", "\\n")


if __name__ == "__main__":
    sys.stdout.write(format_page(probe_folder(Path(sys.argv[1]))))
