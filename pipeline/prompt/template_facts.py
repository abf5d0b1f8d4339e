"""What a server learns from a template's syntax tree before it renders it.

The content form decides whether a message's content reaches the template as text or as a list of
parts, so the servers' own detections are followed to the letter, blind spots included. Ask by way of
`read_source`, which keeps one answer for each template text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from jinja2 import meta, nodes

from pipeline.prompt.chat_template import chat_sandbox
from pipeline.prompt.vllm_versions import VllmRules, list_form_rules

ContentForm = Literal["string", "openai"]
"""``string``: content is text. ``openai``: content is a list of parts."""


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """What vLLM asks of a template.

    ``variables`` are the names that the template takes from outside (what a request's template
    kwargs are filtered by); ``names_developer``: it knows the developer role.
    """

    content_forms: Mapping[tuple[bool, ...], ContentForm]
    variables: frozenset[str]
    names_developer: bool

    def content_form(self, rules: VllmRules) -> ContentForm:
        """Return the content form as a version sees it."""
        return self.content_forms[rules.form_rules]


def find_template_facts(source: str) -> TemplateFacts:
    """Return the facts of a template that compiles (`ChatTemplate` checks); jinja2 works out constants."""
    tree = _parse(source)
    return TemplateFacts(
        content_forms={
            rules.form_rules: _vllm_content_form(tree, rules) for rules in list_form_rules()
        },
        variables=frozenset(meta.find_undeclared_variables(tree)),
        names_developer='"developer"' in source or "'developer'" in source,
    )


def find_sglang_content_form(source: str) -> ContentForm:
    """Return the content form as SGLang sees it.

    A template that speaks of media takes parts; so does one that loops over the content of a
    variable called ``message``, ``msg`` or ``m``, and no other.

    SGLang 0.5.23, ``srt/parser/jinja_template_utils.py``: ``detect_jinja_template_content_format``.
    """
    if any(word in source for word in ("image", "audio", "video", "vision")):
        return "openai"
    owners = {_content_owner(loop.iter) for loop in _parse(source).find_all(nodes.For)}
    return "openai" if owners & {"message", "msg", "m"} else "string"


def _parse(source: str) -> nodes.Template:
    return chat_sandbox().parse(source)


def _vllm_content_form(tree: nodes.Template, rules: VllmRules) -> ContentForm:
    """Return ``openai`` where a loop runs over message content, ``string`` else.

    A loop that unpacks its items (``for k, v in ...``) breaks vLLM's search, which then answers
    ``string``; so does, before 0.33, the message list set to anything but a name.

    vLLM 0.33.0, ``vllm/renderers/hf.py``: ``_detect_content_format``, ``_iter_nodes_assign_*``.
    """
    list_names = _names_of_message_list(tree, rules)
    message_names: set[str] = set()
    for loop in tree.find_all(nodes.For):
        if _name_of(_unwrap(loop.iter)) in list_names:
            if not isinstance(loop.target, nodes.Name):
                return "string"
            message_names.add(loop.target.name)
    if not list_names:
        return "string"
    parameters = _content_parameters(tree, message_names) if rules.follows_macros else {}
    bare = {"content"} if rules.sees_bare_content else set[str]()
    for loop in tree.find_all(nodes.For):
        if _runs_over_content(loop, message_names, parameters.get(id(loop), bare)):
            return "openai" if isinstance(loop.target, nodes.Name) else "string"
    return "string"


def _names_of_message_list(tree: nodes.Template, rules: VllmRules) -> set[str]:
    """Return the names bound to the message list: ``messages``, and what is set to it or its slice.

    A namespace attribute counts as a name with a dot (``ns.rest``). Before 0.33 there was none, and
    the search ended without a name where one was set.
    """
    found = ["messages"]
    for known in found:
        for assignment in tree.find_all(nodes.Assign):
            names = list(_names_set_to(assignment, known))
            if not rules.follows_namespaces:
                is_set = _name_of(_unwrap(assignment.node)) == known
                if is_set and not isinstance(assignment.target, nodes.Name):
                    return set()
                names = [name for name in names if "." not in name]
            found += [name for name in names if name not in found]
    return set(found)


def _names_set_to(assignment: nodes.Assign, known: str) -> Iterator[str]:
    target, value = assignment.target, assignment.node
    if _name_of(_unwrap(value)) == known:
        if isinstance(target, nodes.Name):
            yield target.name
        elif isinstance(target, nodes.NSRef):
            yield f"{target.name}.{target.attr}"
    elif (
        isinstance(target, nodes.Name)
        and isinstance(value, nodes.Call)
        and isinstance(value.node, nodes.Name)
        and value.node.name == "namespace"
    ):
        for keyword in value.kwargs:
            if _name_of(_unwrap(keyword.value)) == known:
                yield f"{target.name}.{keyword.key}"


def _content_parameters(tree: nodes.Template, message_names: set[str]) -> dict[int, set[str]]:
    """Return, by id of each loop inside a macro, the macro's parameters that receive content."""
    parameters: dict[int, set[str]] = {}
    calls = list(tree.find_all(nodes.Call))
    for macro in tree.find_all(nodes.Macro):
        own = [argument.name for argument in macro.args]
        receiving: set[str] = set()
        for call in calls:
            if not (isinstance(call.node, nodes.Name) and call.node.name == macro.name):
                continue
            given: list[tuple[str, nodes.Node]] = list(zip(own, call.args, strict=False))
            for keyword in call.kwargs:
                if keyword.key in own:
                    given.append((keyword.key, keyword.value))
            receiving |= {name for name, value in given if _content_owner(value) in message_names}
        for loop in macro.find_all(nodes.For):
            if receiving or id(loop) not in parameters:
                parameters[id(loop)] = receiving
    return parameters


def _runs_over_content(loop: nodes.For, message_names: set[str], content_names: set[str]) -> bool:
    if _content_owner(loop.iter) in message_names:
        return True
    # Outside macros a plain ``content`` is taken for a message's, wherever it came from.
    return isinstance(loop.iter, nodes.Name) and loop.iter.name in content_names


def _unwrap(node: nodes.Node | None) -> nodes.Node | None:
    """Return what is left of an expression without its filters, tests and slices."""
    while True:
        if isinstance(node, nodes.Filter | nodes.Test) or (
            isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        ):
            node = node.node
        else:
            return node


def _name_of(node: nodes.Node | None) -> str | None:
    """Return ``x`` for the variable x, ``ns.x`` for an attribute of the variable ns, else None."""
    if isinstance(node, nodes.Name):
        return node.name if node.ctx == "load" else None
    if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name):
        return f"{node.node.name}.{node.attr}" if node.node.ctx == "load" else None
    return None


def _content_owner(node: nodes.Node) -> str | None:
    """Return ``x`` for ``x.content`` and ``x["content"]``, else None."""
    inner = _unwrap(node)
    if isinstance(inner, nodes.Getattr):
        is_content = inner.attr == "content"
    elif isinstance(inner, nodes.Getitem):
        is_content = isinstance(inner.arg, nodes.Const) and inner.arg.value == "content"
    else:
        return None
    owner = _name_of(inner.node)
    return owner if is_content and owner is not None and "." not in owner else None
