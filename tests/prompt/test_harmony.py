"""gpt-oss: prompts from the Harmony encoder, offline (answers of the real server: ``tests/parity``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Rejected, UsageError
from pipeline.prompt.chat_template import ChatTemplates
from pipeline.prompt.harmony_vocabulary import load_encoding, write_vocabulary
from pipeline.prompt.request import ChatRequest, Dialect, Rendering
from pipeline.prompt.vllm import VllmDialect
from tests.conftest import require_shared

pytest.importorskip("openai_harmony", reason="the extra 'harmony' is not installed")

NO_TEMPLATE = ChatTemplates({}, {})
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks."}}
# These two are no answers of vLLM 0.33.0: it writes the recipient of a call before the channel, and
# takes tools from the request alone. `tests/parity/harmony_golden.jsonl` holds what it answers.
OTHER_FIXTURES = {"tool_roundtrip", "developer_tools"}


@pytest.fixture(scope="module")
def folder() -> Path:
    return require_shared("assets/tokenizers/gpt-oss")


def make(folder: Path, **options: Any) -> Dialect:
    return VllmDialect.from_options({"fixed_date": "2025-06-28", **options}, "gpt_oss", folder)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str | None = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def call(arguments: Any, identity: str = "c1") -> dict[str, Any]:
    return {
        "id": identity,
        "type": "function",
        "function": {"name": "look", "arguments": arguments},
    }


def render_turn(folder: Path, *messages: dict[str, Any]) -> Rendering:
    return make(folder).render_turn(ChatRequest(messages), NO_TEMPLATE)


def test_the_fixtures_of_the_renderer_are_reproduced(folder: Path) -> None:
    seen = set()
    for path in sorted(
        require_shared("assets/templates/goldens/vllm-render/harmony").glob("*.json")
    ):
        given = json.loads(path.read_text("utf-8"))
        fields = {"messages": given} if isinstance(given, list) else given
        effort = (
            {"reasoning_effort": fields["reasoning_effort"]} if "reasoning_effort" in fields else {}
        )
        request = ChatRequest(fields["messages"], fields.get("tools"))
        text = make(folder, **effort).render_prompt(request, NO_TEMPLATE).text
        if not fields.get("add_generation_prompt", True):
            text = text.removesuffix("<|start|>assistant")
        if text == path.with_suffix(".txt").read_text("utf-8").removesuffix("\n"):
            seen.add(path.stem)
        else:
            assert path.stem in OTHER_FIXTURES
    assert len(seen) == 5


def test_ids_decode_to_the_text(folder: Path) -> None:
    rendering = make(folder).render_prompt(ChatRequest([user("Ñ 👩‍👩‍👧 <|end|>")]), NO_TEMPLATE)
    assert rendering.ids is not None
    assert load_encoding(folder).decode(rendering.ids) == rendering.text
    assert rendering.text.endswith(
        "<|start|>user<|message|>Ñ 👩‍👩‍👧 <|end|><|end|><|start|>assistant"
    )


def test_a_finished_answer_ends_with_return_and_keeps_its_analysis(folder: Path) -> None:
    history = [user("a"), answer("b", reasoning="old"), user("c")]
    prompt = make(folder).render_prompt(ChatRequest(history), NO_TEMPLATE)
    turn = render_turn(folder, *history, answer("d", reasoning="new"))
    assert turn.text.startswith(prompt.text)
    assert turn.text[len(prompt.text) :] == (
        "<|channel|>analysis<|message|>new<|end|>"
        "<|start|>assistant<|channel|>final<|message|>d<|return|>"
    )
    assert "old" not in turn.text


def test_a_finished_call_ends_with_call(folder: Path) -> None:
    turn = render_turn(folder, user("a"), answer(tool_calls=[call('{"q": 1}')]))
    assert turn.text.endswith(
        '<|start|>assistant to=functions.look<|channel|>commentary json<|message|>{"q": 1}<|call|>'
    )


def test_a_result_is_named_after_its_call(folder: Path) -> None:
    messages = [
        user("a"),
        answer(tool_calls=[call({"q": "é"})]),
        {"role": "tool", "tool_call_id": "c1", "content": "7"},
    ]
    text = make(folder).render_prompt(ChatRequest(messages), NO_TEMPLATE).text
    assert '{"q": "é"}<|call|>' in text
    assert "<|start|>functions.look<|channel|>commentary to=assistant<|message|>7<|end|>" in text


def test_a_call_without_an_id_is_refused(folder: Path) -> None:
    nameless = {"type": "function", "function": {"name": "look", "arguments": "{}"}}
    with pytest.raises(Rejected, match="has no 'id'"):
        make(folder).render_prompt(
            ChatRequest([user("a"), answer(tool_calls=[nameless])]), NO_TEMPLATE
        )


def test_hidden_tools_stay_out(folder: Path) -> None:
    options = {"exclude_tools_when_tool_choice_none": True, "tool_choice": "none"}
    request = ChatRequest([user("a")], [TOOL])
    assert "type look = () => any;" in make(folder).render_prompt(request, NO_TEMPLATE).text
    assert "look" not in make(folder, **options).render_prompt(request, NO_TEMPLATE).text


def test_media_and_unknown_roles_are_refused(folder: Path) -> None:
    for message, code in (
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "u"}]},
            "unsupported_content",
        ),
        ({"role": "narrator", "content": "x"}, "server_refused"),
        (user("\ud800"), "server_refused"),
    ):
        with pytest.raises(Rejected) as refusal:
            make(folder).render_prompt(ChatRequest([message]), NO_TEMPLATE)
        assert refusal.value.code == code


def test_the_day_must_be_given(folder: Path) -> None:
    with pytest.raises(UsageError, match="fixed_date is missing"):
        VllmDialect.from_options({}, "gpt_oss", folder)


@pytest.mark.parametrize("effort", ["none", "minimal", "max"])
def test_an_effort_that_harmony_does_not_know_is_refused(folder: Path, effort: str) -> None:
    with pytest.raises(UsageError, match="low, medium, high"):
        make(folder, reasoning_effort=effort)


def test_the_vocabulary_is_written_once_and_byte_exact(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    target = write_vocabulary(folder)
    [file] = target.iterdir()
    lines = file.read_bytes().splitlines()
    assert len(lines) == 199_998
    assert lines[0] == b"IQ== 0"
    before = file.stat().st_mtime_ns
    assert write_vocabulary(folder) == target
    assert file.stat().st_mtime_ns == before


def test_another_models_vocabulary_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundled_tokenizer: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TIKTOKEN_ENCODINGS_BASE", raising=False)
    with pytest.raises(UsageError, match="vocabulary"):
        load_encoding.__wrapped__(bundled_tokenizer)
