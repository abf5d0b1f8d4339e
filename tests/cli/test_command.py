"""The command: parsed first, heavy imports later, every fault with a way out and its exit code."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipeline
from pipeline.cli import command as cli
from pipeline.cli.command import main
from pipeline.cli.options import parse_config
from pipeline.cli.words import EXAMPLES
from pipeline.config import PrepareConfig
from pipeline.errors import UsageError, WorkerFailed
from tests.conftest import ROOT, installed_command, write_lines

RAW = {"id": "a", "context": "2+2=", "continuation": "4"}
TOKENIZER = str(ROOT / "configs" / "tokenizer")
HEAVY = ("torch", "transformers", "datasets", "tokenizers", "pyarrow", "numpy", "huggingface_hub")


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "e.jsonl", [RAW, {**RAW, "id": "b"}])


@pytest.fixture
def arguments(lines: Path, tmp_path: Path) -> list[str]:
    return [
        *("prepare", "--input", str(lines), "--tokenizer", TOKENIZER),
        *("--output", str(tmp_path / "set"), "--num_proc", "1"),
    ]


def write_yaml(tmp_path: Path, **values: Any) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values), "utf-8")
    return str(path)


def run_quietly(*arguments: str) -> int:
    """Return the exit code, also where the parser ends the process itself."""
    try:
        return main(list(arguments))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1


# ---- help


@pytest.mark.parametrize(
    "arguments", [["--help"], ["-h"], [], *([verb, "--help"] for verb in cli.VERBS)]
)
def test_help_answers_without_loading_anything_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from pipeline.cli.command import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stderr == "[]\n"
    assert "usage: context-frozen" in done.stdout


def test_a_wrong_flag_loads_nothing_heavy_either() -> None:
    code = (
        "import sys; from pipeline.cli.command import main\n"
        "assert main(['prepare', '--inputs', 'x']) == 2\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert {"prepare", "inspect", "verify"} <= set(cli.VERBS)
    assert all(
        f"\n  {name} " in shown and verb.purpose in shown for name, verb in cli.VERBS.items()
    )


# ---- wrong usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prepair"], "unknown verb 'prepair'; did you mean 'prepare'?"),
        (["zzz"], "unknown verb 'zzz'; known: "),
        (["prepare", "--max_length", "5"], "unknown flag --max_length; did you mean 'max_len'?"),
        (["prepare", "--tokeniser=x"], "unknown flag --tokeniser; did you mean 'tokenizer'?"),
        (["prepare", "--zzz"], "unknown flag --zzz; known: "),
        (["prepare", "--no_max_len"], "unknown flag --no_max_len"),
        (["prepare", "--config"], "prepare: --config: expected one argument"),
        (
            ["prepare", "--config", "no.yaml"],
            "no.yaml: No such file or directory; expected a YAML file",
        ),
        (["inspect", "x", "--rwo", "3"], "unknown flag --rwo; did you mean 'row'?"),
        (
            ["verify", "no/such/set"],
            "no manifest.json there; expected the folder of a prepared set",
        ),
        (
            ["inspect", "no/such/set"],
            "no manifest.json there; expected the folder of a prepared set",
        ),
    ],
    ids=str,
)
def test_wrong_usage_ends_with_2_and_says_what_is_right(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run_quietly(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("context-frozen: ")
    assert words in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    "wrong",
    [
        ["--max_len", "abc"],
        ["--max_len", "1"],
        ["--max_len", "2.5"],
        ["--server", "tgi"],
        ["--chat_template_kwargs", "{bad"],
        ["--chat_template_kwargs", "[1]"],
        ["--chat_template_kwargs", '{"a": NaN}'],
        ["--max_reject_rate", "2"],
        ["--num_proc", "0"],
        ["stray"],
        ["-q"],
    ],
    ids=str,
)
def test_a_wrong_value_ends_with_2_and_makes_nothing(
    capsys: pytest.CaptureFixture[str], arguments: list[str], tmp_path: Path, wrong: list[str]
) -> None:
    assert run_quietly(*arguments, *wrong) == 2
    shown = capsys.readouterr()
    assert wrong[0].strip("-") in shown.err + shown.out
    assert "Traceback" not in shown.err
    assert not (tmp_path / "set").exists()


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str], lines: Path) -> None:
    assert run_quietly("prepare", "--input", str(lines), "--output", "x") == 2
    shown = capsys.readouterr()
    assert "tokenizer" in shown.err + shown.out


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_length": 5}, "unknown key 'max_length'; did you mean 'max_len'?"),
        ({"max_len": "many"}, "max_len: found many; expected a whole number"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs: found [1]; expected names"),
    ],
    ids=str,
)
def test_a_fault_of_the_file_is_said_with_its_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    path = write_yaml(tmp_path, **values)
    assert run_quietly("prepare", "--config", path) == 2
    assert f"{path}: {words}" in capsys.readouterr().err


def test_words_of_others_cannot_act_on_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_quietly("verify", str(tmp_path / "\x1b[31mred")) == 2
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert "\\x1b[31mred" in shown


# ---- flags over the file over the defaults


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = write_yaml(
        tmp_path, input="a.jsonl", tokenizer="t", output="o", max_len=100, overlong="reject"
    )
    config = parse_config(["--config", path, "--max_len", "50", "--output=p"])
    assert (config.max_len, config.overlong, config.output) == (50, "reject", "p")
    assert (config.input, config.server) == (("a.jsonl",), "vllm")


def test_without_a_file_flags_are_enough() -> None:
    config = parse_config(["--input", "a", "b", "--tokenizer", "t", "--output", "o"])
    assert config.input == ("a", "b")
    assert config.max_len == 8192


def test_a_flag_may_complete_the_file(tmp_path: Path) -> None:
    path = write_yaml(tmp_path, input=["a.jsonl", "b.jsonl"], tokenizer="t")
    assert parse_config(["--output", "o", f"--config={path}"]).input == ("a.jsonl", "b.jsonl")


def test_the_input_of_a_flag_takes_the_place_of_the_files(tmp_path: Path) -> None:
    path = write_yaml(tmp_path, input=["a.jsonl", "b.jsonl"], tokenizer="t", output="o")
    assert parse_config(["--config", path, "--input", "c.jsonl"]).input == ("c.jsonl",)


@pytest.mark.parametrize("said", [True, False])
def test_a_switch_of_the_file_can_be_said_again_and_taken_back(tmp_path: Path, said: bool) -> None:
    path = write_yaml(tmp_path, input="a", tokenizer="t", output="o", overwrite=said)
    assert parse_config(["--config", path]).overwrite is said
    assert parse_config(["--config", path, "--overwrite"]).overwrite is True
    assert parse_config(["--config", path, "--no_overwrite"]).overwrite is False


def test_dashes_and_underscores_are_one() -> None:
    base = ["--input", "a", "--tokenizer", "t", "--output", "o"]
    assert parse_config([*base, "--max-len", "7"]) == parse_config([*base, "--max_len", "7"])


def test_template_variables_are_one_json_object(tmp_path: Path) -> None:
    path = write_yaml(
        tmp_path, input="a", tokenizer="t", output="o", chat_template_kwargs={"a": 1, "b": 2}
    )
    assert parse_config(["--config", path]).chat_template_kwargs == {"a": 1, "b": 2}
    flag = ["--chat_template_kwargs", '{"enable_thinking": false, "n": [1.0, null]}']
    config = parse_config(["--config", path, *flag])
    assert config.chat_template_kwargs == {"enable_thinking": False, "n": [1.0, None]}


def test_the_bundled_configs_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = parse_config(["--config", "configs/quickstart.yaml"])
    assert config.input == ("configs/data/examples.jsonl",)
    assert parse_config(["--config", "configs/with_rejects.yaml"]).max_reject_rate == 0.5


def test_an_error_is_raised_not_printed_by_the_parser(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a YAML file"):
        parse_config(["--config", str(tmp_path / "no.yaml")])


# ---- prepare


def test_prepare_says_what_it_made_and_where(
    capsys: pytest.CaptureFixture[str], arguments: list[str], tmp_path: Path
) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text("utf-8"))
    assert shown.startswith(f"{tmp_path / 'set'}: made 2 rows\n")
    assert "2 lines = 2 rows + 0 rejects" in shown
    assert f"digest {manifest['digest']}" in shown


def test_a_second_run_says_that_it_was_ready(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    main(arguments)
    capsys.readouterr()
    assert main(arguments) == 0
    assert ": unchanged\n" in capsys.readouterr().out


def test_json_is_one_object_with_the_manifest(
    capsys: pytest.CaptureFixture[str], arguments: list[str], tmp_path: Path
) -> None:
    for was_ready in (False, True):
        assert main([*arguments, "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        manifest = json.loads((tmp_path / "set" / "manifest.json").read_text("utf-8"))
        assert shown == {
            "output": str(tmp_path / "set"),
            "was_ready": was_ready,
            "done": "unchanged" if was_ready else "made",
            "rows_before": None,
            **manifest,
        }


def test_refused_data_ends_with_1(
    capsys: pytest.CaptureFixture[str], arguments: list[str], lines: Path, tmp_path: Path
) -> None:
    write_lines(lines, [RAW, '{"id": "torn'])
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert "1 of 2 lines were rejected (bad_json 1); nothing was published" in shown.err
    assert "e.jsonl:2" in shown.err
    assert str(tmp_path / "set.rejects.jsonl") in shown.err
    assert "digest" not in shown.out
    assert main([*arguments, "--max_reject_rate", "0.5"]) == 0
    assert "bad_json: 1" in capsys.readouterr().out


def test_an_unreadable_file_ends_with_1(
    capsys: pytest.CaptureFixture[str], arguments: list[str], lines: Path
) -> None:
    lines.write_text(json.dumps([RAW]))
    assert main(arguments) == 1
    assert "e.jsonl:1: unreadable_file: " in capsys.readouterr().err


def test_wrong_paths_end_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], tmp_path: Path
) -> None:
    assert main([*arguments, "--input", str(tmp_path / "none.jsonl")]) == 2
    assert main([*arguments, "--tokenizer", str(tmp_path)]) == 2
    (tmp_path / "set").write_text("a file")
    assert main(arguments) == 2
    assert capsys.readouterr().out == ""


def test_ctrl_c_ends_with_130_and_says_that_nothing_changed(
    capsys: pytest.CaptureFixture[str], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.job import build

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "build_set", interrupt)
    assert main(arguments) == 130
    assert "stopped; the output is as it was before" in capsys.readouterr().err


def test_a_worker_that_died_ends_with_1_and_is_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.job import build

    def fail(*_: object, **__: object) -> None:
        raise WorkerFailed("a worker process was ended by SIGKILL: shard 3: in.jsonl from line 7")

    monkeypatch.setattr(build, "build_set", fail)
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("context-frozen: a worker process was ended by SIGKILL: shard 3: ")
    assert "Traceback" not in shown.err


# ---- verify and inspect


def test_verify_ends_with_0_where_nothing_is_wrong_and_1_where_something_is(
    capsys: pytest.CaptureFixture[str], quickstart_set: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(quickstart_set, tmp_path / "set")
    assert main(["verify", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}: digest, invariants and seal hold\n"
    assert main(["verify", str(folder), "--tokenizer", TOKENIZER, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"set": str(folder), "ok": True, "findings": []}
    (folder / "README.md").write_text("other")
    assert main(["verify", str(folder)]) == 1
    assert capsys.readouterr().out.startswith("README.md: expected ")
    assert main(["verify", str(folder), "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["ok"] is False
    assert len(shown["findings"]) == 1


def test_inspect_shows_the_row_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], quickstart_set: Path
) -> None:
    assert main(["inspect", str(quickstart_set), "--tokenizer", TOKENIZER, "--row", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("row 2  id ")
    assert shown.count("▌") == 1
    assert main(["inspect", str(quickstart_set), "--id", "nobody"]) == 2


def test_a_reader_that_has_seen_enough_is_no_error(quickstart_set: Path) -> None:
    done = subprocess.run(
        [
            *("bash", "-c", '"$@" | head -n 1; exit "${PIPESTATUS[0]}"', "-"),
            *(sys.executable, "-m", "pipeline.cli.command", "inspect", str(quickstart_set)),
            *("--rows", "10000", "--tokenizer", TOKENIZER),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


# ---- the command as installed


def test_the_installed_command_is_quiet_where_no_terminal_is(
    arguments: list[str], tmp_path: Path
) -> None:
    done = subprocess.run(
        [*installed_command(), *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'set'}: made 2 rows\n")
    # Progress bars belong on a terminal; a log file gets lines.
    assert "\r" not in done.stderr
    assert "Traceback" not in done.stderr


# ---- what the command says of itself


def run_python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, timeout=120
    )


def test_the_package_is_a_command_too_and_both_say_their_release() -> None:
    said = run_python("-m", "pipeline", "--version").stdout
    assert said == f"context-frozen {pipeline.__version__}\n"
    assert main(["--version"]) == 0


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_help_of_a_verb_has_an_example_that_its_parser_takes(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_quietly(verb, "--help") == 0
    shown = capsys.readouterr().out
    assert EXAMPLES[verb] in shown
    command, said, *arguments = shlex.split(EXAMPLES[verb])
    assert (command, said) == ("context-frozen", verb)
    # A wrong flag is refused before anything is done.
    assert run_quietly(verb, *arguments) != 70
    assert "unknown flag" not in capsys.readouterr().err


def test_help_shows_each_setting_of_prepare_in_one_group(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_quietly("prepare", "--help")
    shown = capsys.readouterr().out
    titles = ["input", "template and server", "length", "output", "job", "engines"]
    places = [shown.index(f"\n{title}:\n") for title in titles]
    assert places == sorted(places)
    for item in dataclasses.fields(PrepareConfig):
        assert len(re.findall(rf"^  --{item.name}\b", shown, re.M)) == 1, item.name


def test_places_have_names(capsys: pytest.CaptureFixture[str]) -> None:
    run_quietly("diff", "--help")
    assert "usage: context-frozen diff BEFORE AFTER [--setting" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            ["--report", "false"],
            "--report: found the value false; expected none: a switch is given",
        ),
        (["--report=no"], "by its name alone, here --no_report"),
        (["--no-report", "true"], "by its name alone, here --no_report"),
        (["--report=maybe"], "--report: found the value maybe; expected none"),
        (["--max_len", "abc"], "--max_len: found abc; expected a whole number"),
        (["--max_len", "1"], "max_len: found 1; expected at least 2 tokens"),
        (
            ["--server", "tgi"],
            "--server: found tgi; expected 'vllm' or 'sglang' or 'transformers' or 'mlx' or 'plain'",
        ),
        (["--server_options", "[1]"], "--server_options: found [1]; expected one JSON object"),
        (
            ["rows.jsonl"],
            "rows.jsonl without a flag; expected a flag before it, perhaps --input rows.jsonl",
        ),
        (
            ["job.yaml"],
            "job.yaml without a flag; expected a flag before it, perhaps --config job.yaml",
        ),
    ],
    ids=str,
)
def test_whatever_is_wrong_is_said_in_one_style(
    capsys: pytest.CaptureFixture[str], arguments: list[str], wrong: list[str], words: str
) -> None:
    assert run_quietly(*arguments, *wrong) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""


def test_a_setting_without_a_value_by_default_is_taken_back_by_none(tmp_path: Path) -> None:
    path = write_yaml(tmp_path, input="a", tokenizer="t", output="o", max_continuation=5)
    config = parse_config(["--config", path, "--max_continuation", "none"])
    assert config.max_continuation is None
    assert parse_config(["--config", path]).max_continuation == 5


def test_a_switch_may_stand_before_what_is_given_by_its_place(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_quietly("verify", "--json", "no/such/set") == 2
    assert "expected the folder of a prepared set" in capsys.readouterr().err


def test_a_terminal_is_told_each_stage_and_a_log_file_nothing(
    arguments: list[str], tmp_path: Path
) -> None:
    quiet = run_python("-m", "pipeline", *arguments)
    assert (quiet.returncode, quiet.stderr) == (0, "")
    shutil.rmtree(tmp_path / "set")
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=ROOT,
        timeout=120,
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0
    told = ["reading", "loading the tokenizer", "making rows of", "writing"]
    places = [shown.index(f"context-frozen: {words}") for words in told]
    assert places == sorted(places)
