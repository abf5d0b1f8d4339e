"""What to rename in a row whose keys fit no shape: told by a table of what others call our keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

# What others call a key, likeliest first; capitals, _ and - make no difference.
_CALLED: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "request": ("request_body", "req", "request_json"),
        "response": ("response_body", "resp", "res", "response_json"),
        "prompt": ("question", "query", "input", "user", "problem"),
        "completion": ("answer", "response", "reply", "output", "assistant", "solution"),
        "chosen": ("response", "better", "preferred", "winner", "accepted"),
        "rejected": ("worse", "dispreferred", "loser"),
        "instruction": ("question", "query", "input", "task"),
        "output": ("answer", "response", "reply", "completion"),
        "messages": ("message", "chat", "dialog", "dialogue", "turns", "history"),
        "conversations": ("conversation",),
        "context": (),
        "continuation": ("completion", "answer", "response", "reply", "target"),
    }
)

# The shapes that a row may be meant as, with keys that tell each; of equally near ones the first.
_SHAPES: Final = (
    ("trl", ("prompt", "completion")),
    ("trl", ("prompt", "chosen", "rejected")),
    ("openai_log", ("request", "response")),
    ("alpaca", ("instruction", "output")),
    ("own", ("context", "continuation")),
    ("own", ("messages", "chosen")),
    ("openai", ("messages",)),
    ("sharegpt", ("conversations",)),
)

_SESSIONS: Final = (frozenset({"type", "uuid", "sessionId"}), frozenset({"type", "payload"}))


class _Match(NamedTuple):
    """How near a row is to one shape: keys that it lacks, and its names for those that it has."""

    shape: str
    needed: tuple[str, ...]
    lacking: list[str]
    renamed: dict[str, list[str]]

    @property
    def distance(self) -> tuple[int, int, int]:
        return len(self.lacking), len(self.renamed), -len(self.needed)


def describe_nearest(
    keys: Iterable[str], name_shape: Callable[[frozenset[str]], object]
) -> str | None:
    """Return the shape nearest to these keys, what to rename and what it lacks; None where none is near.

    A shape is near if at least half of the keys that tell it are there, under any name of them, and
    ``name_shape`` names it for the keys of a row that followed the advice.

    >>> describe_nearest(["question", "completion"], lambda keys: "trl")
    'nearest is trl (prompt, completion): rename question to prompt'
    """
    present = frozenset(keys)
    if any(each <= present for each in _SESSIONS):
        return (
            "it is a line of a session of Claude Code or Codex, which only the whole file makes a talk "
            "of: convert it with scripts/sessions_to_rows.py of the source"
        )
    bare: dict[str, list[str]] = {}
    for key in sorted(present):
        bare.setdefault(_bare_name(key), []).append(key)
    near: list[_Match] = []
    for shape, needed in _SHAPES:
        match = _match_keys(shape, needed, present, bare)
        followed = present.difference(each[0] for each in match.renamed.values()).union(needed)
        if (
            0 < len(needed) - len(match.lacking) >= len(match.lacking)
            and name_shape(followed) == shape
        ):
            near.append(match)
    if not near:
        return None
    best = min(near, key=lambda each: each.distance)
    advice = [f"rename {' or '.join(named)} to {key}" for key, named in best.renamed.items()]
    if best.lacking:
        advice.append(f"add {' and '.join(best.lacking)}, which it lacks")
    return f"nearest is {best.shape} ({', '.join(best.needed)}): {', '.join(advice)}"


def _match_keys(
    shape: str, needed: tuple[str, ...], present: frozenset[str], bare: Mapping[str, list[str]]
) -> _Match:
    lacking: list[str] = []
    renamed: dict[str, list[str]] = {}
    # A key that stands for one of the needed ones stands for no other.
    free = present - set(needed)
    for key in needed:
        if key in present:
            continue
        named = [
            name
            for called in (key, *_CALLED[key])
            for name in bare.get(_bare_name(called), ())
            if name in free
        ]
        free -= set(named)
        if named:
            renamed[key] = named
        else:
            lacking.append(key)
    return _Match(shape, needed, lacking, renamed)


def _bare_name(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()
