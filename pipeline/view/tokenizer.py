"""What a tokenizer and its template do, each fact with its evidence and its meaning for training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.answer.traits import Trait, probe_template, report_refusal
from pipeline.answer.turn import TurnFacts
from pipeline.config import RowSettings
from pipeline.errors import excerpt_of
from pipeline.prompt.bounded import BOUNDED_RUNS, OverLimit
from pipeline.rows.builder import RowBuilder
from pipeline.tokens.files import read_position_limit


@dataclass(frozen=True, slots=True)
class TokenizerCheck:
    """The facts about one tokenizer under one server, in the order in which they are read."""

    tokenizer: str
    server: str
    traits: tuple[Trait, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON can hold them."""
        return {
            "tokenizer": self.tokenizer,
            "server": self.server,
            "traits": {trait.name: asdict(trait) for trait in self.traits},
        }


def check_tokenizer_and_template(config: RowSettings) -> TokenizerCheck:
    """Return what the tokenizer and template of ``config`` do; its input and output are not read.

    Raises `UsageError` where there is no such tokenizer or template.
    """
    return describe_builder(RowBuilder(config), config)


def describe_builder(builder: RowBuilder, config: RowSettings) -> TokenizerCheck:
    """Return what the tokenizer and template do that ``builder`` has loaded for ``config``."""
    try:
        with BOUNDED_RUNS.limited():
            report = probe_template(
                builder.dialect,
                builder.templates,
                config.chat_template_kwargs,
                frozenset(builder.encoder.added_tokens),
                builder.stop_tokens,
            )
    except OverLimit as error:
        report = report_refusal(str(error))
    server = " ".join(part for part in (builder.dialect.name, builder.dialect.version) if part)
    traits = (
        *_tokenizer_traits(builder, builder.stop_tokens),
        *report.traits.values(),
        *_turn_traits(report.turns),
    )
    return TokenizerCheck(config.tokenizer, server, traits)


def _tokenizer_traits(builder: RowBuilder, stops: list[str]) -> Iterator[Trait]:
    encoder = builder.encoder
    yield Trait(
        "class",
        type(encoder.tokenizer).__name__,
        f"{encoder.vocabulary_size} ids, {len(encoder.added_tokens)} added tokens",
        "transformers builds this class, and with it the ids, from config.json and tokenizer_config.json.",
    )
    bos = encoder.tokenizer.bos_token
    yield Trait(
        "bos",
        "none" if bos is None else "added" if encoder.adds_bos else "not added",
        excerpt_of(bos or ""),
        "A rendered context gets no BOS beside what its template writes; "
        "raw_context: completions adds the tokenizer's.",
    )
    yield Trait(
        "continuation_encoding",
        encoder.continuation_way,
        "spaces, newlines, digits and other scripts read the same after a context",
        "No first-position rule (a prefix space) reaches a continuation.",
    )
    yield Trait(
        "control_tokens",
        str(len(encoder.special_tokens)),
        excerpt_of(", ".join(sorted(encoder.special_tokens))),
        "In a message's text they become control tokens, as on the server; such rows are flagged.",
    )
    yield Trait(
        "stop_tokens",
        excerpt_of(", ".join(sorted(stops)) or "unknown"),
        "generation_config.json",
        "The server stops at these; the end of turn should be one of them.",
    )
    limit = read_position_limit(encoder.folder)
    yield Trait(
        "positions",
        str(limit or "unknown"),
        "config.json",
        "max_len is never above this many tokens.",
    )


def _turn_traits(turns: TurnFacts) -> Iterator[Trait]:
    end, stops = turns.end_of_turn, turns.stop_tokens
    if end is not None and stops:
        is_stop = end in stops
        yield Trait(
            "end_of_turn_stops",
            "yes" if is_stop else "no",
            excerpt_of(f"{end} in {', '.join(sorted(stops))}"),
            "The trained end of turn is one at which the server stops."
            if is_stop
            else "The server does not stop at the trained end of turn: name the right one with end_of_turn.",
        )
    if turns.role_header:
        yield Trait(
            "role_header",
            excerpt_of(turns.role_header),
            "what the generation prompt lacks",
            "Jobs are refused: the model would have to write this header. Give another chat_template.",
        )
    elif turns.opening:
        yield Trait(
            "answer_opening",
            excerpt_of(turns.opening),
            "between the generation prompt and an answer's content",
            "A plain answer without it gets it, flagged opening_added (opening: none leaves it out).",
        )
