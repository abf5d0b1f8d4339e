"""Print the page docs/end-of-turn.md: the end of turn of every chat template in a folder.

Run as ``python -m scripts.table_of_turns FOLDER_OF_JINJA_FILES > docs/end-of-turn.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.answer.probe import probe_turns
from pipeline.answer.turn_facts import TurnFacts
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

PREFACE = """# End of turn, by chat template

Written by `python -m scripts.table_of_turns FOLDER` from renders alone
(`pipeline/answer/probe.py`), without a tokenizer: a control token is known by its shape, and
there are no stop ids to check against. With a
tokenizer its added tokens decide, and the stop ids of `generation_config.json` where there are any.
`eos_token` is what the tokenizer names so.

**How the answer is found.** The token is read off what the template writes after the text of a last
assistant turn. Of several adjoining control tokens it is the last that also stands before the next
turn; white space ends the search. Where nothing but white space follows the last turn, it is what
stands before the next turn, unless that already opens the next turn. Then the answer is *cannot
tell*: such rows are rejected with `no_end_of_turn` until `end_of_turn:` names the token. One
exception: where the token that opens the next turn is among the stop ids, the model itself emits it
as its end (GLM-4.5 stops at `<|user|>`, and at `<|observation|>` after a tool call), so it is the
answer.

**Calls.** The token after a turn with tool calls, where it can be seen: `=` says that it is the same
one. A token that closes a frame inside the turn (`</tool_call>`) is none, unless it is a stop id.

**Around an answer.** What the template writes between its generation prompt and a plain last answer
(the opening), and between the answer and the end of turn, when that is more than white space.

**Thought.** The marks of a think block, and what closes a block that the prompt leaves open.

## The opening

A served model writes the opening before its answer, and the server's parser takes it away: neither a
log's text nor its message has it. So a plain answer, as text or as message, gets it, flagged
`opening_added`: gpt-oss's `<|channel|>final<|message|>`, or the empty think block of Qwen3 and GLM-4.5,
without which vLLM's reasoning parser returns the answer as reasoning and `content: null`. What the
template writes to close such an answer comes with it. A call is the template's own rendering and has
the same opening where the template writes it there.

It is not added where the continuation begins with it, holds one of its tokens or a think block of its
own, begins with another token of the model's (a call where the template opens calls otherwise), where
the context is raw text, where sampled ids are given, or under `opening: none`. Where the generation
prompt already holds the think block, only what follows the block is added. Seed-OSS's template writes
no empty block, but puts a closed one into the prompt of a request without thinking budget: there the
block is spelt as the template spells one with thought, before calls too.

A template whose generation prompt does not open the assistant's turn (it ignores
`add_generation_prompt`, and writes the header with the answer) would leave the header to the model: the
job stops at its start and names it. Of the templates below that is `oi-simple-chat` (`Assistant:`).

## A message as continuation

A message is read piece by piece: parts `text`, `output_text`, `refusal` are text; parts `thinking` and
`reasoning`, the fields `reasoning`, `reasoning_content`, `thinking`, `thinking_blocks` and
`reasoning_details` (`reasoning.text`) are reasoning. Any other part, a summary and encrypted thought are
rejected with `unsupported_content`, two different reasonings or one inside the content too with
`ambiguous_shape`, an answer of nothing but white space with `empty_continuation`.

A message with reasoning, tool calls or parts is what the template writes for it after the prompt, up
to its end of turn. Where the prompt is no prefix of that rendering, one of these ways is used and the
row is flagged `prompt_not_prefix`; else it is rejected with `not_renderable`.

- **white space**: the rendering differs from the prompt in white space only. What follows the prompt
  is trained, without white space in front.
- **think block**: the rendering lacks a think block that the generation prompt writes (DeepSeek-R1).
  What follows is trained; a block that the prompt leaves open is closed first.
- **moved context**: the rendering writes the context otherwise (Mistral's system text, gpt-oss's
  earlier thought). What follows the context's last text, and the header that both have after it, is
  trained.
- **dropped reasoning**: the template leaves the reasoning out, but has think marks. The reasoning is
  written in those marks, then the rest.

Every text, name and argument of the message must be in the result: a template that drops one makes a
reject that names the part. So does reasoning under a prompt that has closed the think block, a message
that the template spreads over several turns, and a rendering that prints Python (a list of parts, a
call's arguments as a dict, `None`); the printed part in which vLLM wraps a text (Kimi-K2) is written as
the text.

## Calls that are not read back

A call is flagged `call_not_read_back` where the parser of its family would give the client another one.
The form of a call is learnt from the template's rendering of a probe call; the parsers are vLLM's.

- a text of the arguments, or the content beside the call, holds a mark of the call's own frame
  (`</tool_call>`, `[TOOL_CALLS]`, `</parameter>`), or the quote that ends it;
- the template cuts white space off a text, or the parser takes a newline that the template does not
  write (`<parameter=NAME>`, Seed-OSS);
- where each argument is written by itself, without quotes (XML): null, a value of another type than the
  tool's schema names, 5.0 (it comes back as 5), a value other than text under a key that the schema
  lacks, an object as Python prints it;
- where calls are Python: a text without quotes, or a constant inside an object.
"""


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
    """Return the Markdown page: counts, the templates without an answer, and the table."""
    unknown = {name: item for name, item in facts.items() if item.end_of_turn is None}
    lines = [
        PREFACE,
        f"{len(facts)} templates: {len(facts) - len(unknown)} known, {len(unknown)} cannot tell.\n",
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
