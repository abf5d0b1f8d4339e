"""A template whose generation prompt does not open the assistant's turn: the model would have to."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

# Names of the assistant in a header.
_ROLE_NAME: Final = re.compile(r"assistant|chatbot|\b(?:bot|model|gpt|ai)\b", re.IGNORECASE)


def find_role_header(
    opening: str,
    prompt: str,
    prompt_end: str,
    bare: str | None,
    openers: Collection[str],
    control: re.Pattern[str],
) -> str:
    """Return ``opening`` where it is the header of the assistant's turn, nothing where it is not.

    It can be one only where ``bare``, the conversation without a generation prompt, begins with
    ``prompt``: where the generation prompt writes nothing. Then it is one with a token that opens
    other turns too (``openers``), with the role's name, or with a word where ``prompt_end``, what the
    prompt has after the user's text, has no token that could be a header.

    >>> header = "<|start|>assistant\\n"
    >>> find_role_header(header, "Q<|end|>", "<|end|>", "Q<|end|>", ["<|start|>"], re.compile(r"<[^>]+>"))
    '<|start|>assistant\\n'
    >>> find_role_header("<|say|>", "Q<|bot|>", "<|bot|>", "Q<|bot|>", [], re.compile(r"<[^>]+>"))
    ''
    """
    if not opening.strip() or bare is None or not bare.startswith(prompt):
        return ""
    shares_token = any(token in openers for token in control.findall(opening))
    has_word = not control.search(prompt_end) and re.search(r"\w", control.sub("", opening))
    return opening if shares_token or has_word or _ROLE_NAME.search(opening) else ""
