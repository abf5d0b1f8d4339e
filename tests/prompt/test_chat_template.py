"""The chat template: the sandbox of transformers, the right one of several, words for its errors."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pipeline.errors import Rejected, UsageError
from pipeline.prompt.chat_template import ChatTemplate, ChatTemplates, resolve_templates

HI = [{"role": "user", "content": "hi"}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def render(source: str, messages: Any = HI, **kwargs: Any) -> str:
    return ChatTemplate(source, {}).render(messages, **kwargs)


@pytest.fixture(scope="module")
def tokenizer(bundled_tokenizer: Path) -> Any:
    return AutoTokenizer.from_pretrained(bundled_tokenizer)


# ---- rendering


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("thinking", [None, True, False])
def test_the_text_is_that_of_apply_chat_template(
    tokenizer: Any, repository: Path, add_generation_prompt: bool, thinking: bool | None
) -> None:
    templates = resolve_templates(tokenizer, None)
    kwargs = {} if thinking is None else {"enable_thinking": thinking}
    seen = 0
    for line in (repository / "configs/data/examples.jsonl").read_text("utf-8").splitlines():
        example = json.loads(line)
        if "messages" not in example:
            continue
        tools = example.get("tools")
        expected = tokenizer.apply_chat_template(
            example["messages"],
            tools=tools,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **kwargs,
        )
        rendered = templates.for_request(has_tools=bool(tools)).render(
            example["messages"],
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            **kwargs,
        )
        assert rendered == expected
        seen += 1
    assert seen > 40


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_of_a_message_is_printed_as_it_is(text: str) -> None:
    template = ChatTemplate("{{ messages[0].content }}", {})
    assert template.render([{"role": "user", "content": text}]) == text


@given(JSON)
def test_json_in_a_template_is_that_of_python_without_escapes(value: Any) -> None:
    template = ChatTemplate("{{ value | tojson }}", {})
    assert template.render(HI, value=value) == json.dumps(value, ensure_ascii=False)


def test_special_tokens_are_variables_and_a_kwarg_wins_over_them() -> None:
    template = ChatTemplate("{{ bos_token }}{{ other is defined }}", {"bos_token": "<s>"})
    assert template.render(HI) == "<s>False"
    assert template.render(HI, bos_token="<x>", other=1) == "<x>True"


def test_two_templates_of_one_text_do_not_share_their_special_tokens() -> None:
    # transformers keeps compiled templates by their text.
    left, right = (ChatTemplate("{{ eos_token }}", {"eos_token": text}) for text in ("a", "b"))
    assert (left.render(HI), right.render(HI), left.render(HI)) == ("a", "b", "a")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("{{ tools is none }} {{ documents is none }}", "True True"),
        ("{{ add_generation_prompt }}", "False"),
        ("{{ missing }}|{{ missing is defined }}", "|False"),
        ("a\n{% if true %}\nb\n{% endif %}\nc\n", "a\nb\nc"),
        ("{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}", "1"),
        ("{% generation %}x{% endgeneration %}", "x"),
    ],
)
def test_a_template_sees_what_transformers_gives_it(source: str, shown: str) -> None:
    assert render(source) == shown


# ---- what a template may not do


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}{{ cycler.__init__.__globals__.os.getcwd() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'content': 'changed'}) }}",
        "{{ range(10000000) | list }}",
        "{% include 'other' %}",
        "{{ messages[0].content.missing.deeper }}",
        "{{ 1 // 0 }}",
        "{{ messages[7].content + 'x' }}",
        "{{ messages['x'] + 1 }}",
        "{{ ([] | first) + 'x' }}",
        "{{ none + 'x' }}",
        "{{ 'x'.format(1, 2).missing() }}",
        "{{ raise_exception('Conversation roles must alternate') }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_cannot_render_is_a_reject_not_a_crash(source: str) -> None:
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(Rejected) as caught:
        render(source, messages)
    assert caught.value.code == "template_refused"
    assert messages == [{"role": "user", "content": "hi"}]


def test_a_template_reads_no_files_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret")
    source = f"{{% include {str(tmp_path / 'secret')!r} %}}"
    with pytest.raises(Rejected) as caught:
        render(source)
    assert "s3cret" not in str(caught.value)


def test_the_words_of_the_template_are_kept() -> None:
    with pytest.raises(Rejected, match="the chat template raised: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_an_error_without_words_is_known_by_its_kind() -> None:
    with pytest.raises(Rejected, match=r"the chat template raised: .+"):
        render("{{ raise_exception('') }}")


def test_a_text_that_does_not_compile_is_wrong_usage_with_its_line() -> None:
    with pytest.raises(UsageError, match="chat template, line 3: "):
        ChatTemplate("a\nb\n{% if %}", {})
    with pytest.raises(UsageError, match="no_such_filter"):
        ChatTemplate("{{ messages | no_such_filter }}", {})


# ---- which template


def test_tools_pick_the_template_for_tools_where_there_is_one() -> None:
    both = ChatTemplates({"default": "d", "tool_use": "t", "rag": "r"}, {})
    assert both.for_request(has_tools=True).render(HI) == "t"
    assert both.for_request(has_tools=False).render(HI) == "d"
    one = ChatTemplates({"default": "d"}, {})
    assert one.for_request(has_tools=True).render(HI) == "d"


def test_without_a_default_template_the_names_are_said() -> None:
    with pytest.raises(UsageError, match=r"no 'default' among \['rag'\]"):
        ChatTemplates({"rag": "r"}, {}).for_request(has_tools=False)


def test_a_tokenizer_without_template_is_refused_when_it_is_needed() -> None:
    templates = ChatTemplates({}, {})
    assert templates.is_empty
    assert templates.sha256_by_name == {}
    with pytest.raises(UsageError, match=r"no chat template; .* give chat_template: FILE"):
        templates.for_request(has_tools=False)


def test_a_template_is_known_by_the_hash_of_its_text() -> None:
    templates = ChatTemplates({"tool_use": "é", "default": "d"}, {})
    assert templates.sha256_by_name == {
        "default": hashlib.sha256(b"d").hexdigest(),
        "tool_use": hashlib.sha256("é".encode()).hexdigest(),
    }


# ---- where it comes from


def test_the_tokenizers_own_template_is_taken(tokenizer: Any, bundled_tokenizer: Path) -> None:
    source = (bundled_tokenizer / "chat_template.jinja").read_text(encoding="utf-8")
    templates = resolve_templates(tokenizer, None)
    assert templates.sha256_by_name == {"default": hashlib.sha256(source.encode()).hexdigest()}
    template = templates.for_request(has_tools=True)
    assert template.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def test_a_file_takes_the_place_of_all_own_templates(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_bytes("é\r\n{{ eos_token }}".encode())
    templates = resolve_templates(tokenizer, str(path))
    assert list(templates.sha256_by_name) == ["default"]
    # Jinja reads every line end as a newline, as vLLM does when it opens the file as text.
    assert templates.for_request(has_tools=True).render(HI) == "é\n<|im_end|>"


@pytest.mark.parametrize("content", [None, b"\xff\xfe{"])
def test_a_file_that_cannot_be_read_is_wrong_usage(
    tokenizer: Any, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "mine.jinja"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"mine\.jinja.*expected a UTF-8 Jinja file"):
        resolve_templates(tokenizer, str(path))


def test_named_templates_of_a_folder_are_found(bundled_tokenizer: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundled_tokenizer, tmp_path / "t")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    templates = resolve_templates(AutoTokenizer.from_pretrained(folder), None)
    assert set(templates.sha256_by_name) == {"default", "tool_use"}
    assert templates.for_request(has_tools=True).render(HI) == "with tools"


def test_a_tokenizer_may_have_no_template(bundled_tokenizer: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundled_tokenizer, tmp_path / "t")
    (folder / "chat_template.jinja").unlink()
    assert resolve_templates(AutoTokenizer.from_pretrained(folder), None).is_empty
