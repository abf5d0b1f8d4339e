"""The verbs that check: ``check`` what a tokenizer, a template and rows are, ``verify`` a saved set.

What is heavy is imported when a verb runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pipeline.cli.options import POSITIONAL, POSITIONAL_OR_NAMED, parse_options
from pipeline.cli.process import prepare_libraries
from pipeline.cli.streams import say, say_json
from pipeline.config import RowSettings, read_settings
from pipeline.errors import UsageError
from pipeline.view.stages import show_stage


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Settings of ``context-frozen verify``."""

    set: str = field(metadata=POSITIONAL)
    """Folder of a saved set."""

    tokenizer: str | None = None
    """Also check that this tokenizer is the one that the set was made with."""

    server: str | None = None
    """URL of a running vLLM or SGLang server, whose ids for some rows are compared with ours."""

    rows: int = 100
    """Number of rows to compare with the server."""

    timeout: float = 60.0
    """For --server: seconds that one answer may take, at most 600."""

    trust_remote_code: bool = False
    """For --server: let the tokenizer's repository run its own code, if the set was made so."""

    json: bool = False
    """Print the findings as JSON."""


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Settings of ``context-frozen check``."""

    tokenizer: str | None = field(default=None, metadata=POSITIONAL_OR_NAMED)
    """Folder or Hub name of a tokenizer, also as --tokenizer."""

    input: str | None = None
    """Say what the first 1,000 rows of this file, folder or glob are and which would be refused; with a
    tokenizer, its template is asked too."""

    format: str = "auto"
    """For --input: shape of the rows, as of prepare."""

    decisions: Literal["given", "all", "last"] = "given"
    """For --input: which decision points become rows, as of prepare."""

    model: str | None = None
    """Say what the frozen step does with the model in this folder: each row alone against two phases,
    rope, positions, memory. It is loaded in float32, on the CPU."""

    set: str | None = None
    """For --model: saved set whose longest, shortest and most unlike rows are run; else made-up ones."""

    context_tokens: int = 32_768
    """For --model: context tokens of a batch, for which memory is told."""

    continuation_tokens: int = 8_192
    """For --model: continuation tokens of a batch, for which memory is told."""

    chat_template: str | None = None
    """Jinja file to use in place of the tokenizer's own template."""

    chat_template_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    """Variables for the chat template."""

    server: Literal["vllm", "sglang", "transformers", "mlx", "plain"] = "vllm"
    """Server whose rewriting of a request is reproduced."""

    server_options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Flags that the server runs with."""

    json: bool = False
    """Print the facts as JSON."""


_OF_MODEL: Final = ("model", "set", "context_tokens", "continuation_tokens")


def run_verify(args: Sequence[str]) -> int:
    """Run ``verify``: exit code 0 where the set is what its manifest says, 1 where it is not."""
    options = parse_options(VerifyOptions, args, "verify")
    show_stage(f"checking {options.set}")
    prepare_libraries(may_need_torch=options.trust_remote_code)
    from pipeline.sets.load import verify

    findings = verify(options.set, tokenizer=options.tokenizer)
    comparison = None
    if options.server is not None:
        from pipeline.view.live import compare_with_server

        comparison = compare_with_server(
            options.set,
            options.server,
            options.rows,
            timeout=options.timeout,
            trust_remote_code=options.trust_remote_code,
        )
        findings += comparison.findings
    if options.json:
        figures = {"set": options.set, "ok": not findings, "findings": findings}
        if comparison is not None:
            figures |= comparison.to_dict()
        say_json(figures)
        return 1 if findings else 0
    if comparison is not None:
        say(comparison.summary)
    say("\n".join(findings) or f"{options.set}: digest, invariants and seal hold")
    return 1 if findings else 0


def run_check(args: Sequence[str]) -> int:
    """Run ``check``: what rows are, or a table of what the tokenizer and its template do."""
    options = parse_options(CheckOptions, args, "check")
    values = dataclasses.asdict(options)
    as_json, path = values.pop("json"), values.pop("input")
    for name in _OF_MODEL:
        del values[name]
    if options.model is not None:
        return _check_model(options, as_json=as_json)
    if path is not None:
        return _check_rows(path, values, as_json=as_json)
    if options.tokenizer is None:
        raise UsageError("check: nothing to check; give a TOKENIZER, or rows with --input FILE")
    show_stage(f"loading the tokenizer {options.tokenizer}")
    prepare_libraries()
    from pipeline.view.table import print_facts
    from pipeline.view.tokenizer import check_tokenizer_and_template

    checked = check_tokenizer_and_template(read_settings(RowSettings, values, "check"))
    if as_json:
        say_json(checked.to_dict())
    else:
        print_facts(f"{checked.tokenizer} under {checked.server}", checked.traits)
    return 0


def _check_model(options: CheckOptions, *, as_json: bool) -> int:
    """Say what the frozen step does with a model; exit code 1 where it is refused or not right."""
    model = str(options.model)
    show_stage(f"loading the model {model}")
    prepare_libraries(may_need_torch=True)
    try:
        from pipeline.train.model_check import check_model, load_model
    except ModuleNotFoundError as error:
        advice = "pip install 'context-frozen[train]'"
        raise UsageError(f"check --model: {error.name} is not installed; {advice}") from error
    from pipeline.sets.load import load
    from pipeline.view.table import print_facts

    rows = None if options.set is None else load(options.set)["train"]
    loaded = load_model(model)
    show_stage("running rows alone and in two phases")
    checked = check_model(
        loaded,
        rows,
        name=model,
        context_tokens=options.context_tokens,
        continuation_tokens=options.continuation_tokens,
    )
    if as_json:
        say_json(checked.to_dict())
    else:
        print_facts(f"{model} in two phases", checked.traits)
    return 0 if checked.is_right else 1


def _check_rows(path: str, values: dict[str, Any], *, as_json: bool) -> int:
    """Say what rows are; exit code 1 where some would be refused."""
    show_stage(f"reading {path}")
    prepare_libraries()
    from pipeline.view.input_check import check_input, describe_input

    checked = check_input(path, values, values.pop("tokenizer"))
    if as_json:
        say_json(checked.to_dict())
    else:
        say("\n".join(describe_input(checked)))
    return 1 if checked.refused else 0
