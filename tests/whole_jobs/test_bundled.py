"""The bundled examples, tokenizer, chat template and configs hold what the README says of them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from pipeline.config import config_from_mapping, read_config_file
from pipeline.errors import Rejected
from pipeline.prompt.chat_template import ChatTemplate, resolve_templates
from scripts import train_tokenizer as script

EXAMPLES = script.DATA / "examples.jsonl"
BAD_EXAMPLES = script.DATA / "examples_with_a_bad_line.jsonl"
CONFIGS = script.ROOT / "configs"

Example = dict[str, Any]
Message = dict[str, Any]

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
# Text in which the added tokens turn up often, whole and torn.
PROMPTS = st.lists(
    st.one_of(
        TEXTS,
        st.sampled_from(
            [*script.SPECIAL_TOKENS, *script.MARKS, "<|im_", "end|>", "</", " ", "\r\n"]
        ),
    ),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module")
def raw_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(script.FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(script.FOLDER)


@pytest.fixture(scope="module")
def template(tokenizer: Any) -> ChatTemplate:
    return resolve_templates(tokenizer, None).for_request(has_tools=False)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return [json.loads(line) for line in lines_of(EXAMPLES)]


def lines_of(path: Path) -> list[str]:
    text = path.read_bytes().decode("utf-8")
    assert text.endswith("\n")
    return text.removesuffix("\n").split("\n")


def context_of(example: Example) -> list[Message] | str:
    """Return the messages before the decision point, or the raw text."""
    if "context" in example:
        return example["context"]
    return example["messages"][: example.get("decision_idx", -1)]


def continuation_of(example: Example) -> Message:
    """Return the continuation as a message; text becomes its content."""
    continuation = example["continuation"] if "continuation" in example else example["messages"][-1]
    if isinstance(continuation, str):
        return {"role": "assistant", "content": continuation}
    return continuation


def messages_of(example: Example) -> list[Message]:
    """Return every message written in an example, its continuation included."""
    listed = example.get("messages", example.get("context"))
    return [*(listed if isinstance(listed, list) else []), continuation_of(example)]


def text_of(example: Example) -> str:
    """Return what people and models wrote; not the tools, the reason or the ids."""
    spoken = [message["content"] or "" for message in messages_of(example)]
    raw = example.get("context")
    return "\n".join([*spoken, raw if isinstance(raw, str) else ""])


def prompt_of(template: ChatTemplate, example: Example) -> str:
    context = context_of(example)
    if isinstance(context, str):
        return context
    return template.render(
        context,
        tools=example.get("tools"),
        add_generation_prompt=True,
        **example.get("chat_template_kwargs", {}),
    )


def full_render_of(template: ChatTemplate, example: Example) -> str:
    return template.render(
        [*context_of(example), continuation_of(example)],
        tools=example.get("tools"),
        **example.get("chat_template_kwargs", {}),
    )


def user(text: str | None) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str | None, **more: Any) -> Message:
    return {"role": "assistant", "content": text, **more}


def tool_call(name: str, arguments: Any) -> Message:
    return {
        "id": "abc123def",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


# ---- tokenizer


def test_training_gives_the_committed_bytes(tmp_path: Path) -> None:
    script.write_tokenizer_folder(
        script.train_tokenizer(script.training_texts(script.DATA)), tmp_path
    )
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(written) == [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    changed = [
        name for name, data in written.items() if data != (script.FOLDER / name).read_bytes()
    ]
    assert not changed, (
        "the texts changed: run python scripts/train_tokenizer.py, commit the result"
    )


def test_training_twice_gives_equal_bytes() -> None:
    texts = list(script.training_texts(script.DATA))
    assert script.train_tokenizer(texts).to_str() == script.train_tokenizer(texts).to_str()


def test_the_strings_of_a_json_value_come_in_order_with_its_keys() -> None:
    value = {"a": ["b", {"c": 1, "d": None}, True], "e": "f"}
    assert list(script.strings_of(value)) == ["a", "b", "c", "d", "e", "f"]


def test_the_tokenizer_is_small_enough_to_bundle() -> None:
    assert (script.FOLDER / "tokenizer.json").stat().st_size < 150_000


def test_every_byte_has_a_token(raw_tokenizer: Tokenizer) -> None:
    decoded = {raw_tokenizer.decode([token_id]) for token_id in range(256)}
    ascii_texts = {chr(byte) for byte in range(128)}
    assert ascii_texts <= decoded
    # The other 128 are pieces of characters, which decode to the replacement character alone.
    assert decoded - ascii_texts == {"\ufffd"}


@settings(max_examples=300, deadline=None)
@given(text=PROMPTS)
def test_decoding_gives_back_any_text(raw_tokenizer: Tokenizer, text: str) -> None:
    ids = raw_tokenizer.encode(text, add_special_tokens=False).ids
    assert raw_tokenizer.decode(ids, skip_special_tokens=False) == text


@settings(max_examples=300, deadline=None)
@given(text=PROMPTS)
def test_transformers_gives_the_ids_of_the_file(
    raw_tokenizer: Tokenizer, tokenizer: Any, text: str
) -> None:
    ids = raw_tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids


@settings(max_examples=100, deadline=None)
@given(text=PROMPTS)
def test_there_is_no_bos_to_add(tokenizer: Any, text: str) -> None:
    assert tokenizer(text)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("token", [*script.SPECIAL_TOKENS, *script.MARKS])
def test_an_added_token_is_one_id_wherever_it_stands(raw_tokenizer: Tokenizer, token: str) -> None:
    token_id = raw_tokenizer.token_to_id(token)
    for text in (token, f"a{token}b", f" {token}\n", token * 3):
        ids = raw_tokenizer.encode(text, add_special_tokens=False).ids
        assert ids.count(token_id) == text.count(token)


def test_marks_stay_in_text_that_is_decoded_without_special_tokens(tokenizer: Any) -> None:
    text = "".join((*script.SPECIAL_TOKENS, *script.MARKS))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "".join(script.MARKS)


def test_the_model_stops_at_the_end_of_turn_and_the_end_of_text(tokenizer: Any) -> None:
    stops = GenerationConfig.from_pretrained(script.FOLDER).eos_token_id
    assert tokenizer.convert_ids_to_tokens(stops) == [script.TURN_END, script.END_OF_TEXT]
    assert (tokenizer.eos_token, tokenizer.pad_token) == (script.TURN_END, script.END_OF_TEXT)


def test_the_model_config_has_a_row_for_every_token(tokenizer: Any) -> None:
    config = AutoConfig.from_pretrained(script.FOLDER)
    assert config.vocab_size == len(tokenizer)
    assert config.max_position_embeddings == tokenizer.model_max_length == script.MAX_POSITIONS


# ---- chat template


@given(question=TEXTS, answer=TEXTS, instruction=TEXTS)
def test_text_is_printed_as_it_is(
    template: ChatTemplate, question: str, answer: str, instruction: str
) -> None:
    messages = [{"role": "system", "content": instruction}, user(question), assistant(answer)]
    assert template.render(messages, add_generation_prompt=True) == (
        f"<|im_start|>system\n{instruction}<|im_end|>\n"
        f"<|im_start|>user\n{question}<|im_end|>\n"
        f"<|im_start|>assistant\n{answer}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_no_system_message_and_no_tools_give_no_system_turn(template: ChatTemplate) -> None:
    assert template.render([user("hi")]) == "<|im_start|>user\nhi<|im_end|>\n"


def test_absent_content_is_empty_text(template: ChatTemplate) -> None:
    messages = [user("hi"), {"role": "assistant"}, user(None)]
    assert template.render(messages) == template.render([user("hi"), assistant(""), user("")])


def test_an_unknown_role_is_refused_by_its_name(template: ChatTemplate) -> None:
    with pytest.raises(Rejected, match='Unknown role "narrator"; expected system, user') as refusal:
        template.render([user("hi"), {"role": "narrator", "content": "Later."}])
    assert refusal.value.code == "template_refused"


def test_every_prompt_is_a_prefix_of_the_render_with_its_answer(
    template: ChatTemplate, examples: list[Example]
) -> None:
    with_messages = [example for example in examples if isinstance(context_of(example), list)]
    for example in with_messages:
        prompt, full = prompt_of(template, example), full_render_of(template, example)
        assert full.startswith(prompt), example["id"]
        assert full.endswith("<|im_end|>\n"), example["id"]
        text = continuation_of(example)["content"] or ""
        assert text in full.removeprefix(prompt), example["id"]


@pytest.mark.parametrize("with_system", [True, False])
def test_the_tools_of_the_system_turn_parse_back(
    template: ChatTemplate, examples: list[Example], with_system: bool
) -> None:
    tools = next(example["tools"] for example in examples if example["id"] == "travel-search-first")
    tools = [*tools, {"type": "function", "function": {"name": "größe", "description": "<'&\"\n"}}]
    system = [{"role": "system", "content": "Be brief."}] if with_system else []
    turn, rest = template.render([*system, user("hi")], tools=tools).split("<|im_end|>\n", 1)
    head, listed = turn.split("Tools, one JSON object a line:\n")
    assert head == ("<|im_start|>system\n" + ("Be brief.\n\n" if with_system else ""))
    assert [json.loads(line) for line in listed.split("\n")[: len(tools)]] == tools
    assert rest == "<|im_start|>user\nhi<|im_end|>\n"


@pytest.mark.parametrize("content", [None, "", "Both, then."])
def test_tool_calls_parse_back(template: ChatTemplate, content: str | None) -> None:
    first, second = {"city": "Zürich", "days": 2}, {}
    calls = [tool_call("weather", first), tool_call("all_off", second)]
    text = template.render([user("hi"), assistant(content, tool_calls=calls)])
    turn = text.split("<|im_start|>assistant\n")[1]
    blocks = re.findall(r"<tool_call>\n(.*)\n</tool_call>", turn)
    assert [json.loads(block) for block in blocks] == [
        {"name": "weather", "arguments": first},
        {"name": "all_off", "arguments": second},
    ]
    assert turn.startswith(f"{content}\n<tool_call>" if content else "<tool_call>")
    assert "</tool_call>\n<tool_call>" in turn


def test_arguments_as_json_text_and_as_an_object_render_alike(template: ChatTemplate) -> None:
    arguments = {"city": "Zürich", "days": [1, 2.50, None]}
    as_object = assistant(None, tool_calls=[tool_call("weather", arguments)])
    spelling = json.dumps(arguments, ensure_ascii=False)
    as_text = assistant(None, tool_calls=[tool_call("weather", spelling)])
    assert template.render([user("hi"), as_object]) == template.render([user("hi"), as_text])


def test_results_that_follow_each_other_share_a_turn(template: ChatTemplate) -> None:
    results = [{"role": "tool", "tool_call_id": "abc123def", "content": text} for text in "ABC"]
    text = template.render([*results[:2], assistant("ok"), results[2]])
    assert text == (
        "<|im_start|>user\n<tool_response>\nA\n</tool_response>\n<tool_response>\nB\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nok<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nC\n</tool_response><|im_end|>\n"
    )


def test_thinking_is_shown_since_the_last_question_only(template: ChatTemplate) -> None:
    result = {"role": "tool", "tool_call_id": "abc123def", "content": "12"}
    messages = [
        user("first"),
        assistant("one", reasoning_content="old thought"),
        user("second"),
        assistant(None, reasoning_content="look it up", tool_calls=[tool_call("f", {})]),
        result,
        assistant("two", reasoning_content="found"),
    ]
    text = template.render(messages)
    assert "old thought" not in text
    assert "<|im_start|>assistant\none<|im_end|>" in text
    assert "<|im_start|>assistant\n<think>\nlook it up\n</think>\n\n<tool_call>" in text
    assert text.endswith("<|im_start|>assistant\n<think>\nfound\n</think>\n\ntwo<|im_end|>\n")
    assert "look it up" not in template.render([*messages, user("third")])


@pytest.mark.parametrize("kwargs", [{}, {"enable_thinking": True}, {"enable_thinking": False}])
def test_the_prompt_after_a_tool_result_goes_on_from_the_one_before(
    template: ChatTemplate, kwargs: dict[str, bool]
) -> None:
    before = [user("lights")]
    call = assistant(None, tool_calls=[tool_call("set_light", {"percent": 30})])
    after = [*before, call, {"role": "tool", "tool_call_id": "abc123def", "content": "ok"}]
    prompts = [template.render(m, add_generation_prompt=True, **kwargs) for m in (before, after)]
    assert prompts[1].startswith(prompts[0])


def test_thinking_turned_off_writes_an_empty_block_into_the_prompt(template: ChatTemplate) -> None:
    shown = template.render([user("hi")], add_generation_prompt=True)
    assert shown.endswith("<|im_end|>\n<|im_start|>assistant\n")
    off = template.render([user("hi")], add_generation_prompt=True, enable_thinking=False)
    assert off == shown + "<think>\n\n</think>\n\n"


# ---- examples


def test_there_are_about_sixty_examples_with_readable_ids_of_their_own(
    examples: list[Example],
) -> None:
    ids = [example["id"] for example in examples]
    assert 60 <= len(ids) <= 75
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)+", example_id) for example_id in ids)


def test_lines_are_json_with_every_script_in_plain_sight() -> None:
    for line in lines_of(EXAMPLES):
        assert json.dumps(json.loads(line), ensure_ascii=False) == line


def test_every_row_shape_is_there(examples: list[Example]) -> None:
    shapes = Counter(
        (
            "text" if isinstance(example.get("context"), str) else "messages",
            "decision_idx" in example,
            type(example.get("continuation")).__name__,
        )
        for example in examples
    )
    assert set(shapes) == {
        ("text", False, "str"),
        ("messages", True, "str"),
        ("messages", True, "dict"),
        ("messages", False, "NoneType"),  # the last message is the continuation
        ("messages", False, "str"),  # the context is a list of messages
    }


def test_every_decision_point_is_a_turn_of_the_assistant_that_gets_better(
    examples: list[Example],
) -> None:
    for example in examples:
        if "decision_idx" in example:
            # Nothing stands there where the log stops at the prompt.
            for said in example["messages"][example["decision_idx"] :][:1]:
                assert said["role"] == "assistant", example["id"]
                assert said != continuation_of(example), example["id"]


def test_tool_calls_are_spelt_as_servers_log_them(examples: list[Example]) -> None:
    results = 0
    for example in examples:
        open_ids: set[str] = set()
        for message in messages_of(example):
            for call in message.get("tool_calls", []):
                assert re.fullmatch(r"[A-Za-z0-9]{9}", call["id"]), example["id"]
                assert isinstance(json.loads(call["function"]["arguments"]), dict), example["id"]
                declared = {tool["function"]["name"] for tool in example["tools"]}
                assert call["function"]["name"] in declared, example["id"]
                open_ids.add(call["id"])
            if message["role"] == "tool":
                assert message["tool_call_id"] in open_ids, example["id"]
                results += 1
    assert results >= 8


def test_the_examples_cover_what_the_pipeline_must_handle(examples: list[Example]) -> None:
    def count(feature: Any) -> int:
        return sum(bool(feature(example)) for example in examples)

    def roles(example: Example) -> list[str]:
        return [message["role"] for message in messages_of(example)]

    assert count(lambda e: roles(e).count("user") == 1) >= 20
    assert count(lambda e: roles(e).count("user") >= 2) >= 8
    assert count(lambda e: "system" in roles(e)) >= 20
    assert count(lambda e: "tools" in e) >= 10
    assert count(lambda e: continuation_of(e).get("tool_calls")) >= 5
    assert count(lambda e: continuation_of(e).get("reasoning_content")) >= 3
    assert count(lambda e: any(m.get("reasoning_content") for m in messages_of(e)[:-1])) >= 3
    assert count(lambda e: e.get("memories")) >= 20
    assert count(lambda e: e.get("memories") == []) >= 1
    assert count(lambda e: "memories" not in e) >= 5
    assert count(lambda e: e.get("reason")) >= len(examples) - 1
    assert count(lambda e: e.get("chat_template_kwargs") == {"enable_thinking": False}) == 1
    assert {e["weight"] for e in examples if "weight" in e} == {0.5, 2.0}
    for fence in ("```python\n", "```sql\n", "```bash\n"):
        assert count(lambda e, fence=fence: fence in text_of(e)) >= 1
    assert count(lambda e: "\u200d" in text_of(e)) >= 1, "an emoji joined by U+200D"
    assert count(lambda e: text_of(e) != unicodedata.normalize("NFC", text_of(e))) >= 1
    assert count(lambda e: "\r\n" in text_of(e) and "\t" in text_of(e)) >= 1
    assert (
        count(lambda e: script.TURN_END in "".join(m["content"] or "" for m in messages_of(e))) == 1
    )
    edges = [continuation_of(e)["content"] or "" for e in examples]
    assert sum(text[:1].isspace() for text in edges) >= 2
    assert sum(text[-1:].isspace() for text in edges) >= 4


def test_at_least_eight_languages_in_six_scripts(examples: list[Example]) -> None:
    script_of_language = {
        "ar": "ARABIC",
        "de": "LATIN",
        "el": "GREEK",
        "es": "LATIN",
        "fr": "LATIN",
        "he": "HEBREW",
        "hi": "DEVANAGARI",
        "ja": "HIRAGANA",
        "ko": "HANGUL",
        "pt": "LATIN",
        "ru": "CYRILLIC",
        "ta": "TAMIL",
        "th": "THAI",
        "tr": "LATIN",
        "uk": "CYRILLIC",
        "vi": "LATIN",
        "zh": "CJK",
    }
    for language, name in script_of_language.items():
        [example] = [e for e in examples if e["id"].startswith(f"{language}-")]
        letters = [letter for letter in text_of(example) if letter.isalpha()]
        written = Counter(unicodedata.name(letter).split()[0] for letter in letters)
        assert written[name] >= 10, example["id"]


def test_conversations_are_shared_by_decision_points_and_by_continuations(
    template: ChatTemplate, examples: list[Example]
) -> None:
    with_point = [example for example in examples if "decision_idx" in example]
    conversations = {(json.dumps(e["messages"]), e["decision_idx"]) for e in with_point}
    assert Counter(messages for messages, _ in conversations).most_common(1)[0][1] == 3
    assert Counter(prompt_of(template, e) for e in with_point).most_common(1)[0][1] == 3


def test_the_raw_chatml_context_is_what_the_template_renders(
    template: ChatTemplate, examples: list[Example]
) -> None:
    [raw] = [e["context"] for e in examples if str(e.get("context")).startswith(script.TURN_START)]
    turns = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", raw, re.DOTALL)
    messages = [{"role": role, "content": text} for role, text in turns]
    assert len(messages) == 2
    assert template.render(messages, add_generation_prompt=True) == raw


def test_one_conversation_is_clearly_too_long_for_the_quickstart(
    template: ChatTemplate, tokenizer: Any, examples: list[Example]
) -> None:
    max_len = config_from_mapping(
        read_config_file(str(CONFIGS / "quickstart.yaml")), "test"
    ).max_len
    context_lens = {e["id"]: len(tokenizer(prompt_of(template, e))["input_ids"]) for e in examples}
    [too_long] = [name for name, length in context_lens.items() if length > max_len]
    assert 2 * max_len < context_lens[too_long] < script.MAX_POSITIONS
    # Room for the longest continuation too: no other example loses a token.
    assert max(length for name, length in context_lens.items() if name != too_long) < max_len - 150


def test_two_of_the_seven_bad_examples_are_bad(examples: list[Example]) -> None:
    rows: list[Example] = []
    torn: list[str] = []
    for line in lines_of(BAD_EXAMPLES):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            torn.append(line)
    assert (len(rows), len(torn)) == (6, 1)
    replaced = [e["messages"][e["decision_idx"]]["role"] for e in rows if "decision_idx" in e]
    assert Counter(replaced) == {"assistant": 3, "user": 1}
    # A folder of both files can be read in one job.
    assert not {e["id"] for e in rows} & {e["id"] for e in examples}
