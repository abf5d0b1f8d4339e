"""A template that takes time or memory without end is refused wherever templates run.

In a push the limits are low; at night they are the real ones.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import config_from_mapping
from pipeline.errors import DataRefused, Rejected, UsageError
from pipeline.examples.example import TrainingExample
from pipeline.job.prepare import Prepared, prepare
from pipeline.prompt import apart
from pipeline.prompt.bounded import BOUNDED_RUNS, OverLimit, RenderLimits
from pipeline.prompt.chat_template import CHARACTERS_WRITTEN, ChatTemplate
from pipeline.rows.example_tokenizer import ExampleTokenizer
from pipeline.view.tokenizer import check_tokenizer_and_template
from tests.conftest import write_lines
from tests.faults.template_bombs import BOMBS, CONSTANTS, bomb_template

LOW = RenderLimits(seconds=0.3, memory=2**28, quick_seconds=0.15)
FEW = ("nested loops", "doubling by ~", "a rounding", "numbers squared", "a product of texts")
MIB = 2**20


@pytest.fixture
def low_limits() -> Iterator[RenderLimits]:
    with BOUNDED_RUNS.use_limits(LOW):
        yield LOW
    BOUNDED_RUNS.end()


@pytest.fixture
def real_limits() -> Iterator[RenderLimits]:
    yield BOUNDED_RUNS.limits
    BOUNDED_RUNS.end()


def ask(name: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": name}]


def own_template(folder: Path) -> str:
    return (folder / "chat_template.jinja").read_text("utf-8")


def refusal_of(template: ChatTemplate, name: str) -> Rejected:
    BOUNDED_RUNS.begin_point()
    with pytest.raises(Rejected) as caught:
        template.render(ask(name))
    assert caught.value.code == "template_refused"
    return caught.value


# ---- one render


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.usefixtures("low_limits")
def test_a_bomb_is_refused_and_the_next_render_is_right(name: str) -> None:
    template = ChatTemplate(bomb_template({name: BOMBS[name]}, "{{ x }}"), {})
    refusal_of(template, name)
    BOUNDED_RUNS.begin_point()
    assert template.render(ask("Hi")) == "H"


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.usefixtures("low_limits")
def test_what_is_worked_out_while_it_compiles_is_bounded_once(name: str) -> None:
    template = ChatTemplate(CONSTANTS[name], {})
    begun = time.process_time()
    refusals = {refusal_of(template, "Hi").reason for _ in range(100)}
    assert len(refusals) == 1
    assert time.process_time() - begun < LOW.seconds


@pytest.mark.usefixtures("low_limits")
def test_one_point_waits_for_the_limits_once() -> None:
    template = ChatTemplate(bomb_template(BOMBS, ""), {})
    first = refusal_of(template, "nested loops")
    begun = time.monotonic()
    with pytest.raises(OverLimit) as caught:
        template.render(ask("numbers squared"))
    assert caught.value.reason == first.reason
    assert time.monotonic() - begun < LOW.seconds


@pytest.mark.usefixtures("low_limits")
def test_probes_share_the_time_of_one_render() -> None:
    template = ChatTemplate("{% for a in range(99999) %}{% set b = a %}{% endfor %}", {})
    rendered: list[str] = []

    def probe() -> None:
        with BOUNDED_RUNS.limited():
            rendered.extend(template.render(ask("Hi")) for _ in range(10_000))

    with pytest.raises(OverLimit, match="CPU time"):
        probe()
    BOUNDED_RUNS.begin_point()
    assert template.render(ask("Hi")) == ""


def test_the_words_of_an_error_are_cut() -> None:
    error = refusal_of(ChatTemplate("{{ raise_exception('x' * 1000000) }}", {}), "Hi")
    assert len(error.reason) < 1100


@pytest.mark.parametrize("given", [10, 2**21])
def test_a_render_may_write_four_times_what_it_is_given_and_some_of_its_own(given: int) -> None:
    template = ChatTemplate("{% for i in range(9) %}{{ messages[0].content }}{% endfor %}", {})
    most = CHARACTERS_WRITTEN + 4 * given
    if 9 * given > most:
        assert "it wrote over" in refusal_of(template, "x" * given).reason
    else:
        assert len(template.render(ask("x" * given))) == 9 * given


# ---- the process apart


def test_a_process_that_was_not_needed_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    BOUNDED_RUNS.end()
    monkeypatch.setattr(apart, "IDLE_SECONDS", 0.05)
    template = ChatTemplate("{{ messages[0].content }}", {})
    for _ in range(3):
        time.sleep(0.2)
        assert template.render(ask("Hi")) == "Hi"
    BOUNDED_RUNS.end()


def test_threads_render_at_once() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    texts: dict[str, str] = {}

    def render(name: str) -> None:
        for _ in range(50):
            texts[name] = template.render(ask(name))

    threads = [threading.Thread(target=render, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {name: name for name in "abcd"}


def test_a_fork_of_this_process_renders_in_a_process_of_its_own() -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    assert template.render(ask("Hi")) == "Hi"
    if not (child := os.fork()):
        os._exit(template.render(ask("there")) != "there")
    assert os.waitpid(child, 0)[1] == 0
    assert template.render(ask("Hi")) == "Hi"


def test_the_limits_of_this_process_are_as_before() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)
    ChatTemplate("{{ messages[0].content }}", {}).render(ask("Hi"))
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)) == before


# ---- a job, the check, a notebook


def prepare_bombs(
    folder: Path, tokenizer: Path, names: Sequence[str], num_proc: int = 1, others: int = 9
) -> Prepared:
    """Prepare a file of bombs between rows that are none."""
    template = folder / "bombs.jinja"
    template.write_text(bomb_template(BOMBS, own_template(tokenizer)), "utf-8")
    good = [{"id": f"good{n}", "messages": ask("Hi"), "continuation": "x"} for n in range(others)]
    bad = [{"id": name, "messages": ask(name), "continuation": "x"} for name in names]
    middle = others // 2
    return prepare(
        input=str(write_lines(folder / "in.jsonl", [*good[:middle], *bad, *good[middle:]])),
        tokenizer=str(tokenizer),
        chat_template=str(template),
        output=str(folder / f"set{num_proc}"),
        num_proc=num_proc,
        max_reject_rate=0.99,
    )


def assert_only_bombs_are_rejected(made: Prepared, names: Sequence[str], others: int = 9) -> None:
    assert (made.counts["lines"], made.counts["rows"]) == (len(names) + others, others)
    assert isinstance(made.output, Path)
    lines = (made.output / "rejects.jsonl").read_text("utf-8").splitlines()
    rejects = [json.loads(line) for line in lines]
    assert [reject["id"] for reject in rejects] == list(names)
    assert {reject["code"] for reject in rejects} == {"template_refused"}


@pytest.mark.usefixtures("low_limits", "many_shards")
def test_a_job_rejects_bombs_and_goes_on_whatever_the_number_of_workers(
    tmp_path: Path, bundled_tokenizer: Path
) -> None:
    made = [prepare_bombs(tmp_path, bundled_tokenizer, FEW, number) for number in (1, 2)]
    for each in made:
        assert_only_bombs_are_rejected(each, FEW)
    assert made[0].digest == made[1].digest


@pytest.mark.usefixtures("low_limits")
def test_a_job_whose_template_only_bombs_is_stopped(
    tmp_path: Path, bundled_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.job import shards

    monkeypatch.setattr(shards, "MOST_OVER", 3)
    with pytest.raises(DataRefused, match="over 3 conversations of shard 0"):
        prepare_bombs(tmp_path, bundled_tokenizer, ["nested loops"] * 9)


def check_bomb(folder: Path, tokenizer: Path, source: str) -> str:
    """Return what the check of a template that is nothing but a bomb says of rendering."""
    template = folder / "bomb.jinja"
    template.write_text("{% set x = messages[0].role[:1] %}" + source, "utf-8")
    values = {"input": "-", "output": "-", "tokenizer": str(tokenizer)}
    config = config_from_mapping({**values, "chat_template": str(template)}, "check")
    traits = check_tokenizer_and_template(config).to_dict()["traits"]
    assert traits["renders"]["value"] == "refused"
    return traits["renders"]["evidence"]


def tokenize_bomb(tokenizer: ExampleTokenizer, name: str) -> Rejected:
    example = TrainingExample(id="a", messages=ask(name), decision_idx=1, continuation="x")
    with pytest.raises(Rejected) as caught:
        tokenizer.prepare_example(example, device="cpu")
    return caught.value


@pytest.mark.parametrize("name", FEW)
@pytest.mark.usefixtures("low_limits")
def test_a_check_and_a_notebook_refuse_bombs(
    tmp_path: Path, bundled_tokenizer: Path, name: str
) -> None:
    assert "chat template" in check_bomb(tmp_path, bundled_tokenizer, BOMBS[name])
    template = tmp_path / "bombs.jinja"
    template.write_text(bomb_template(BOMBS, own_template(bundled_tokenizer)), "utf-8")
    tokenizer = ExampleTokenizer(str(bundled_tokenizer), chat_template=str(template))
    assert tokenize_bomb(tokenizer, name).code == "template_refused"
    example = TrainingExample(id="a", messages=ask("Hi"), decision_idx=1, continuation="x")
    assert tokenizer.prepare_example(example, device="cpu").total_len


def test_a_template_that_python_cannot_compile_is_named() -> None:
    loops = "{% for a in 'x' %}" * 30 + "{% endfor %}" * 30
    with pytest.raises(UsageError, match="chat template, as a whole: too many statically nested"):
        ChatTemplate(loops, {})


# ---- all of it with the real limits


def assert_bounded(begun: tuple[float, float], limits: RenderLimits, renders: int = 1) -> None:
    """Check the CPU time and the largest memory of this process' children."""
    times = os.times()
    spent = times.children_user + times.children_system + times.user + times.system - begun[0]
    assert spent < renders * (limits.seconds + limits.quick_seconds) + 5
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert largest < begun[1] + limits.memory + 100 * MIB


def spent_so_far() -> tuple[float, float]:
    times = os.times()
    spent = times.children_user + times.children_system + times.user + times.system
    return spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", BOMBS)
def test_every_verb_ends_every_bomb(
    tmp_path: Path, bundled_tokenizer: Path, real_limits: RenderLimits, name: str
) -> None:
    begun = spent_so_far()
    check_bomb(tmp_path, bundled_tokenizer, BOMBS[name])
    assert_bounded(begun, real_limits)

    template = tmp_path / "bombs.jinja"
    template.write_text(bomb_template(BOMBS, own_template(bundled_tokenizer)), "utf-8")
    tokenizer = ExampleTokenizer(str(bundled_tokenizer), chat_template=str(template))
    begun = spent_so_far()
    assert tokenize_bomb(tokenizer, name).code == "template_refused"
    assert_bounded(begun, real_limits)

    begun = spent_so_far()
    assert_only_bombs_are_rejected(prepare_bombs(tmp_path, bundled_tokenizer, [name]), [name])
    # At the head of the job, and in its shard.
    assert_bounded(begun, real_limits, renders=2)
