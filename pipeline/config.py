"""Settings of ``prepare``: one frozen dataclass, read from YAML and overridden by flags.

Every field says whether it changes the bytes of the output: those that do are part of the seal,
the others (worker count, paths) are not. Only the standard library and PyYAML are imported here,
so that ``--help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast, get_type_hints

import yaml

from pipeline.config_values import is_of_type, spell_type
from pipeline.errors import UsageError, excerpt_of

_NOT_SEALED: Final = ("tokenizer", "chat_template", "encoder")


@dataclass(frozen=True, kw_only=True)
class RowSettings:
    """What changes a row or which rows a set has: all of it is sealed.

    Of ``tokenizer`` and ``chat_template`` the content is sealed and not the place; ``encoder`` is a
    choice between libraries that are checked to give the same ids.
    """

    tokenizer: str
    """Folder or Hub name of the served model's tokenizer. Its files are sealed, its place is not."""

    format: str = "auto"
    """Shape of the input rows (own, openai, openai_log, trl, sharegpt, alpaca, pairs); auto tells it
    of each row, by all of its keys."""

    chat_template: str | None = None
    """Jinja file to use in place of the tokenizer's own template. Its text is sealed."""

    chat_template_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    """Variables for the chat template, such as enable_thinking; an example's own win."""

    server: Literal["vllm", "sglang", "transformers", "mlx", "plain"] = "vllm"
    """Server whose rewriting of a request is reproduced; plain is apply_chat_template untouched."""

    server_options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Flags that the server runs with, such as content_format."""

    raw_context: Literal["chat", "completions"] = "chat"
    """How a context given as text is encoded: chat adds no special tokens, completions adds the
    tokenizer's (as /v1/completions does)."""

    max_len: int = 8192
    """Most tokens of a row, context and continuation together; never above the model's limit."""

    overlong: Literal["drop_turns", "cut_left", "reject"] = "drop_turns"
    """What happens to a context that does not fit."""

    overlong_last_turn: Literal["cut_left", "reject"] = "cut_left"
    """What happens under drop_turns where the last turn alone does not fit: it is cut inside, after
    the system messages, or the row is rejected."""

    overlong_continuation: Literal["reject", "cut_right"] = "reject"
    """What happens to a continuation that does not fit: cut_right leaves it without an end of turn."""

    min_context: int = 1
    """Fewest tokens of context that must remain in a row."""

    max_continuation: int | None = None
    """Most tokens of a continuation, its end of turn included; none by default."""

    decisions: Literal["given", "all", "last"] = "given"
    """Which decision points become rows: where the example says (else the last assistant message),
    all assistant messages, or the last one."""

    rejected_continuations: Literal["drop", "keep"] = "drop"
    """The worse continuation of a pair: left out, or kept as a row of the split rejected, which no
    trainer is to train."""

    validation_fraction: float = 0.0
    """Share of the conversations that goes to the validation split, chosen by a hash of their name."""

    end_of_turn: str = "auto"
    """Token that ends a continuation: auto learns it from the template, none adds none, or its text."""

    tool_call_ids: Literal["keep", "template"] = "keep"
    """Ids of tool calls: as they are, or those of another form than the template demands replaced by
    ones of that form (Mistral's: nine letters or digits), of calls and their results alike."""

    think: Literal["close", "reject", "keep"] = "close"
    """A continuation without a closing think mark under a prompt that opens a think block."""

    opening: Literal["template", "none"] = "template"
    """What the template writes between its generation prompt and a plain answer (gpt-oss's channel,
    Qwen3's empty think block): template puts it before the continuation, none adds nothing."""

    control_tokens: Literal["flag", "reject"] = "flag"
    """A control token in the text of a user, system or tool message."""

    encoder: Literal["auto", "tokenizers", "fastokens"] = "auto"
    """Library that encodes: auto takes fastokens where it is checked to give the tokenizer's own ids,
    and tokenizers elsewhere."""

    columns: Literal["full", "train"] = "full"
    """Columns to save: full, or train for the numeric ones alone (LLaMA-Factory needs these)."""

    on_duplicate: Literal["error", "first", "last"] = "error"
    """Two examples of one id: a fault, or the first or the last is kept. A line that only repeats an
    earlier one is always kept once."""

    trust_remote_code: bool = False
    """Let the tokenizer's repository run its own code; named in the seal."""

    def __post_init__(self) -> None:
        if self.max_len < 2:
            raise UsageError(
                f"max_len: found {self.max_len}; expected at least 2 tokens, one of context and one to train"
            )
        if not 0 <= self.validation_fraction < 1:
            raise UsageError(
                f"validation_fraction: found {self.validation_fraction}; expected a share below 1"
            )
        _refuse_below_one(self, "min_context", "max_continuation")
        if self.min_context >= self.max_len:
            raise UsageError(
                f"min_context: found {self.min_context}; expected less than max_len {self.max_len}, "
                "or no token is left to train"
            )

    def sealed_settings(self) -> dict[str, Any]:
        """Return the settings that change the output's bytes, by name."""
        return {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(RowSettings)
            if item.name not in _NOT_SEALED
        }


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """Where the input is and the set goes, how many processes make it, and how: none of it is sealed."""

    input: tuple[str, ...]
    """JSONL files (plain, .gz, .zst), globs, folders, s3:// addresses, or - for standard input. Their
    content is sealed, their place is not."""

    output: str
    """Folder of the data set to write, or its s3://, gs:// or az:// address."""

    max_reject_rate: float = 0.0
    """Share of the lines (of their decision points, where a line has several) that may be rejected
    before nothing is published, 0 to 1."""

    num_proc: int = field(default_factory=lambda: usable_cores())
    """Worker processes; 1 works in this process."""

    batch_size: int = 1024
    """Most lines that are mapped at once."""

    report: bool = True
    """Write report.html into the set: its figures and some rows, as one page."""

    license: str | None = None
    """Licence of the set, for its card: a name that the Hub knows, such as apache-2.0."""

    language: tuple[str, ...] = ()
    """Languages of the conversations, for the card: codes such as en, or a list of them."""

    pretty_name: str | None = None
    """Title of the set, for the card; by default the name of its folder."""

    overwrite: bool = False
    """Replace what stands at the output even where this job did not make it: another set, or
    something else."""

    append: bool = False
    """Add the examples of the input to the set at the output, which must have the same seal."""

    executor: Literal["none", "ray", "slurm"] = "none"
    """What makes the shards: this process and its workers, or tasks that ray or slurm runs, on
    machines that share the folders of input, tokenizer and output."""

    tasks: int | None = None
    """Tasks that an executor runs; by default as many as workers, else one for each shard, at most
    1,000. There are never more of them than shards."""

    workers: int | None = None
    """Tasks that run at once; no limit by default."""

    cpus_per_task: int = 1
    """Cores that a task asks for, and processes that it works with."""

    partition: str | None = None
    """Slurm's partition for the tasks; by default the cluster's own."""

    time: str | None = None
    """Slurm's time limit of a task, such as 04:00:00; by default that of the partition."""

    venv: str | None = None
    """Environment that the tasks of slurm run in, on all machines at the same path; by default the
    one that runs here."""

    ray_address: str | None = None
    """Ray cluster, such as 10.0.0.1:6379; by default the one at RAY_ADDRESS or on this machine, else
    one is started here."""

    def __post_init__(self) -> None:
        for name in ("input", "language"):
            value: Any = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if not self.input:
            raise UsageError(
                "input: nothing given; expected at least one JSONL file, glob or folder"
            )
        if not 0 <= self.max_reject_rate <= 1:
            raise UsageError(
                f"max_reject_rate: found {self.max_reject_rate}; expected a share between 0 and 1"
            )
        _refuse_below_one(self, "num_proc", "batch_size", "tasks", "workers", "cpus_per_task")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(RowSettings, JobSettings):
    """Settings of ``context-frozen prepare``: those of the rows and those of the job."""

    def __post_init__(self) -> None:
        RowSettings.__post_init__(self)
        JobSettings.__post_init__(self)

    def row_settings(self) -> RowSettings:
        """Return the settings of the rows alone."""
        names = (item.name for item in dataclasses.fields(RowSettings))
        return RowSettings(**{name: getattr(self, name) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON can hold them: the resolved config saved with the output."""
        return {
            item.name: list(value)
            if isinstance(value := getattr(self, item.name), tuple)
            else value
            for item in dataclasses.fields(self)
        }


def _refuse_below_one(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise UsageError(f"{name}: found {value}; expected at least 1")


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def config_from_mapping(values: Mapping[str, Any], where: str) -> PrepareConfig:
    """Return the config of ``prepare`` from YAML or keyword values. Raises as `read_settings`.

    >>> config_from_mapping({"input": "a.jsonl", "tokenizer": "t", "output": "o"}, "here").max_len
    8192
    """
    return read_settings(PrepareConfig, values, where)


_Settings = TypeVar("_Settings", bound=RowSettings)


def read_settings(kind: type[_Settings], values: Mapping[str, Any], where: str) -> _Settings:
    """Return settings of a ``kind`` from YAML or keyword values.

    Raises `UsageError` for an unknown key (with the nearest known one), a missing one, or a value
    of another type than the field's.

    >>> read_settings(RowSettings, {"tokenizer": "t", "max_len": 100}, "here").max_len
    100
    """
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise UsageError(f"{where}: unknown key {name!r}{nearest_known(name, hints)}")
        if not is_of_type(value, hints[name]):
            raise UsageError(
                f"{where}: {name}: found {excerpt_of(value)}; expected {spell_type(hints[name])}"
            )
    missing = [
        item.name
        for item in dataclasses.fields(kind)
        if item.default is dataclasses.MISSING
        and item.default_factory is dataclasses.MISSING
        and item.name not in values
    ]
    if missing:
        raise UsageError(
            f"{where}: missing {', '.join(missing)}; give each in the YAML or as --{missing[0]} VALUE"
        )
    return kind(**values)


def config_of_rows(settings: RowSettings, output: str) -> PrepareConfig:
    """Return the config of a set whose rows came from a `datasets.Dataset` and not from files."""
    names = (item.name for item in dataclasses.fields(RowSettings))
    rows = {name: getattr(settings, name) for name in names}
    return PrepareConfig(**rows, input=("datasets",), output=output)


def read_config_file(path: str) -> dict[str, Any]:
    """Return the keys of a YAML file.

    Raises `UsageError` where the file is missing, is not YAML, is not a mapping or has a key twice.
    """
    try:
        values: object = yaml.load(Path(path).read_text(encoding="utf-8"), _PlainLoader)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}; expected a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--config {path}: {error}; expected YAML with one `key: value` a line"
        ) from error
    if not isinstance(values, dict):
        raise UsageError(
            f"--config {path}: found {excerpt_of(values)}; expected `key: value` lines"
        )
    return {str(name): value for name, value in cast("dict[object, Any]", values).items()}


class _PlainLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would keep the last; leaves dates as text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.MarkedYAMLError(problem=f"{twice[0]} twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_PlainLoader.yaml_implicit_resolvers = {
    first: [rule for rule in rules if rule[0] != "tag:yaml.org,2002:timestamp"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def nearest_known(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Return ``; did you mean X?`` for the known name closest to ``name``, or the known names."""
    close = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"
