"""A line is one object exactly as `json.loads` reads it, or a reject that says why."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import EXCERPT_LIMIT, Rejected
from pipeline.lines import json_text as json_lines
from pipeline.lines.json_text import (
    DEPTH_LIMIT,
    decode_quickly,
    find_end,
    is_one_value_over_lines,
    parse_line,
    parse_value,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=5)


def reject_of(text: str) -> Rejected:
    with pytest.raises(Rejected) as caught:
        parse_line(text)
    assert len(caught.value.excerpt) <= EXCERPT_LIMIT
    str(caught.value).encode()  # a report must be able to write it
    return caught.value


@given(example=OBJECTS, ascii_only=st.booleans())
def test_an_object_comes_back_as_json_loads_gives_it(example: dict[str, Any], ascii_only: bool):
    text = json.dumps(example, ensure_ascii=ascii_only)
    # `repr` tells 1 from 1.0 and from True, and -0.0 from 0.0.
    assert repr(parse_line(text)) == repr(json.loads(text)) == repr(example)


@given(st.text(max_size=30) | st.text(alphabet='{}[]":,\\u0deE+-.19 NaInf', max_size=30))
def test_any_text_is_an_object_or_a_reject(text: str):
    try:
        value = parse_line(text)
    except Rejected:
        return  # any other error fails the test
    assert value == json.loads(text)


@given(example=OBJECTS.filter(bool), data=st.data())
def test_an_object_that_is_cut_anywhere_is_bad_json(example: dict[str, Any], data: st.DataObject):
    text = json.dumps(example, ensure_ascii=data.draw(st.booleans()))
    error = reject_of(text[: data.draw(st.integers(1, len(text) - 1))])
    assert error.code == "bad_json"


@pytest.mark.parametrize(
    "number", ["1.0", "1e2", "-0.0", "0.1", "1e-12", "12345678901234567890", "-0"]
)
def test_numbers_keep_the_type_and_value_that_python_reads(number: str):
    assert repr(parse_line(f'{{"a": {number}}}')["a"]) == repr(json.loads(number))


@pytest.mark.parametrize(
    ("text", "reason", "excerpt"),
    [
        ('{"a": 1, "b": 2, "a": 3}', 'the key "a" is twice in one object; keep one', '"a": 3}'),
        ('{"m": [{"é": 1, "\\u00e9": 1}]}', 'the key "é" is twice', '"é"'),
        ('{"a": NaN}', "NaN is not JSON; write null", "NaN"),
        ('{"a": [Infinity]}', "Infinity is not JSON", "Infinity"),
        ('{"a": {"b": -Infinity}}', "-Infinity is not JSON", "-Infinity"),
        ('{"a": 1e400}', "a number too large for a float; keep it as text", "1e400"),
        ('{"a": -1e400}', "too large for a float", "-1e400"),
        ('{"a": "x', r"ends inside its JSON value \(a torn line\?\); restore", '"x'),
        ('{"a": [1,', r"ends inside its JSON value", "[1,"),
        ('{"a": [1 \t ', r"ends inside its JSON value", "[1"),
        ('{"a" \r', r"ends inside its JSON value", '{"a"'),
        ('{"a": 1}{"a": 2}', r"Extra data at character 9\); write one object a line", '{"a": 2}'),
        ('{"a": 1,}', "not JSON .* at character [89]", "1,}"),
        ("{'a': 1}", "not JSON .* at character 2.; it is Python's repr of a dict", "'a'"),
        ('{"a": "b\tc"}', "not JSON .Invalid control character", "b\\tc"),
        ('\ufeff{"a": 1}', "a byte order mark inside the file", "{"),
        ("id,context", "not JSON .Expecting value at character 1", "id,context"),
        ("\0\0\0", "not JSON .Expecting value", "\\x00\\x00\\x00"),
    ],
)
def test_what_is_not_strict_json_is_rejected_with_its_place(text: str, reason: str, excerpt: str):
    error = reject_of(text)
    assert error.code == "bad_json"
    assert re.search(reason, error.reason)
    assert excerpt in error.excerpt


def test_the_excerpt_shows_the_place_in_a_long_line():
    line = json.dumps({"a": "x" * 500, "b": "here", "c": "y" * 500})
    assert '"here" NaN' in reject_of(line.replace('"here"', '"here" NaN')).excerpt
    assert reject_of(line[:600]).excerpt == line[520:600]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[1, 2]", "an array"),
        ('[{"id": "a"}]', "an array"),
        ('"text"', "a text"),
        ("null", "null"),
        ("true", "true or false"),
        ("7", "a number"),
        ("7.5", "a number"),
    ],
)
def test_a_line_that_is_no_object_is_named(text: str, kind: str):
    error = reject_of(text)
    assert (error.code, error.excerpt) == ("not_an_object", text)
    assert f"the line holds {kind}, expected an object" in error.reason


@given(value=VALUES, ascii_only=st.booleans())
def test_a_value_of_any_type_comes_back_as_json_loads_gives_it(value: Any, ascii_only: bool):
    assert repr(parse_value(json.dumps(value, ensure_ascii=ascii_only))) == repr(value)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('[{"a": 1, "a": 2}]', "bad_json"),
        ("NaN", "bad_json"),
        ("[" * 300 + "]" * 300, "bad_json"),
        ('["\\ud800"]', "lone_surrogate"),
    ],
)
def test_a_value_of_any_type_is_read_as_strictly_as_a_line(text: str, code: str):
    with pytest.raises(Rejected) as caught:
        parse_value(text)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("text", "path", "excerpt"),
    [
        ('{"context": "a \\ud83d b"}', "at context holds", "a \\ud83d b"),
        ('{"a": "\\ude00\\ud83d"}', "at a holds", "\\ude00\\ud83d"),
        ('{"m": [{"x": 1}, {"y": {"z": "\\uDC00"}}]}', "at m[1].y.z holds", "\\udc00"),
        ('{"m": {"k\\udfff": 1}}', "at m.k\\udfff holds", "k\\udfff"),
        ('{"a": "\udc00"}', "at a holds", "\\udc00"),
        ('{"a": "' + "x" * 200 + "\\ud800" + "y" * 200 + '"}', "at a holds", "x\\ud800y"),
    ],
)
def test_half_of_a_surrogate_pair_is_rejected_with_its_field(text: str, path: str, excerpt: str):
    error = reject_of(text)
    assert error.code == "lone_surrogate"
    assert path in error.reason
    assert excerpt in error.excerpt


def test_whole_pairs_and_texts_that_only_look_like_escapes_are_kept():
    assert parse_line('{"a": "\\ud83d\\ude00"}') == {"a": "😀"}
    assert parse_line('{"a": "\\\\ud83d"}') == {"a": "\\ud83d"}


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_nesting_is_limited_at_the_same_depth_whatever_the_stack(opening: str, closing: str):
    def nested(depth: int) -> str:
        return '{"a":' + opening * (depth - 1) + "1" + closing * (depth - 1) + "}"

    def parsed_below(frames: int, text: str) -> dict[str, Any]:
        return parsed_below(frames - 1, text) if frames else parse_line(text)

    assert parsed_below(300, nested(DEPTH_LIMIT)) == json.loads(nested(DEPTH_LIMIT))
    for depth in (DEPTH_LIMIT + 1, 5_000, 500_000):
        error = reject_of(nested(depth))
        assert error.code == "bad_json"
        assert f"nested deeper than {DEPTH_LIMIT} levels" in error.reason


def test_many_brackets_that_are_not_deep_are_kept():
    text = json.dumps({"a": [[{}] for _ in range(DEPTH_LIMIT)], "b": "[" * 1000})
    assert parse_line(text) == json.loads(text)


def test_an_integer_too_long_for_python_is_bad_json():
    digits = sys.get_int_max_str_digits()
    assert parse_line('{"a": 1' + "0" * (digits - 1) + "}") == {"a": 10 ** (digits - 1)}
    error = reject_of('{"a": 12, "b": 1' + "0" * digits + "}")
    assert (error.code, error.excerpt[:2]) == ("bad_json", '{"')
    assert error.reason == f"a number of {digits + 1} digits; keep it as text"


@given(values=st.lists(OBJECTS.filter(bool), min_size=1, max_size=3), indent=st.integers(0, 4))
def test_pretty_printed_objects_are_one_value_over_lines(values: list[dict[str, Any]], indent: int):
    lines = "\n".join(json.dumps(value, indent=indent) for value in values).split("\n")
    assert is_one_value_over_lines(lines[:3])


@given(values=st.lists(OBJECTS, min_size=1, max_size=4), indent=st.none() | st.integers(0, 4))
def test_an_array_of_objects_is_one_value_over_lines(
    values: list[dict[str, Any]], indent: int | None
):
    assert is_one_value_over_lines(json.dumps(values, indent=indent).split("\n")[:3])
    with_line_ends = ",\n".join(json.dumps(value) for value in values)
    assert is_one_value_over_lines(f"[{with_line_ends}]".split("\n")[:3])


@given(first=OBJECTS.filter(bool), others=st.lists(OBJECTS, max_size=2), data=st.data())
def test_a_torn_first_line_does_not_make_a_file_one_value(
    first: dict[str, Any], others: list[dict[str, Any]], data: st.DataObject
):
    line = json.dumps(first)
    torn = line[: data.draw(st.integers(1, len(line)))]
    assert not is_one_value_over_lines([torn, *map(json.dumps, others)])


@pytest.mark.parametrize(
    ("head", "one_value"),
    [
        ([], False),
        (["[1, 2]"], False),
        (["[]"], True),
        ([' [ {"id": "a"'], True),
        (["[1, 2]", '{"id": "a"}'], False),
        (['[{"role": "user"}]', '[{"role": "user"}]'], False),
        (["{"], False),
        (["{", '"id": "a",'], True),
        (["{", '"id": "a, cut'], True),
        (['{"id": "a, cut', '"id": "a"}'], False),
        (['{"id": "a",', '"context": "b"}'], True),
        (['{"id": "a", "context":', '{"id": "b"}'], False),
        (["[" * 100_000, "]"], False),
    ],
)
def test_the_beginning_of_a_file_tells_one_value_from_lines(head: list[str], one_value: bool):
    assert is_one_value_over_lines(head) is one_value


# ---- orjson, where it reads the same


def spelt(characters: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(characters, max_size=5).map(lambda parts: f'"{"".join(parts)}"')


KEY_TEXTS = spelt(st.sampled_from(["a", "b", "\\u0061", '\\"', "\\\\", "é"]))
STRING_TEXTS = spelt(
    st.sampled_from([*"a {[,:é🙂\t\u2028\x7f", "\\n", '\\"', "\\\\", "\\/", "\\x"])
    | st.sampled_from(["00e9", "0022", "005c", "d83d\\ude00", "d83d", "dc00"]).map("\\u".__add__)
)
NUMBER_TEXTS = (
    st.from_regex(r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,20})?([eE][-+]?[0-9]{1,3})?", fullmatch=True)
    | NUMBERS.map(repr)
    | st.sampled_from(["-0", "-0.0", "01", "1.", ".5", "+1", "NaN", "-Infinity", "1e400", "1e-400"])
    | st.sampled_from([str(2**bits + more) for bits in (53, 63, 64, 70) for more in (-1, 0, 1)])
)


def joined(opened: str, items: st.SearchStrategy[str], closed: str) -> st.SearchStrategy[str]:
    return st.tuples(st.lists(items, max_size=3), st.sampled_from([",", " , "])).map(
        lambda parts: opened + parts[1].join(parts[0]) + closed
    )


JSON_TEXTS = st.recursive(
    STRING_TEXTS | NUMBER_TEXTS | st.sampled_from(["null", "true", "false", "True"]),
    lambda inner: (
        joined("[", inner, "]")
        | joined("{", st.tuples(KEY_TEXTS, inner).map(":".join), "}")
        | joined("{ ", st.tuples(st.just('"a"'), inner).map(" : ".join), " }")
    ),
    max_leaves=10,
)


def outcome_of(text: str) -> tuple[str, ...]:
    try:
        return (repr(parse_value(text)),)
    except Rejected as error:
        return error.code, error.reason, error.excerpt


@given(JSON_TEXTS | st.tuples(JSON_TEXTS, JSON_TEXTS).map("".join))
def test_the_quick_way_gives_what_the_slow_way_gives(text: str) -> None:
    quick = outcome_of(text)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_lines, "decode_quickly", lambda text: None)
        assert quick == outcome_of(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        '{"a": {"b": "\\\\", "b": "\\\\"}, "c": "\\\\", "d": "\\\\"}',
        '{"a": 1, "a": "\\u0022\\u0022"}',
        '{"a": "x\\u005c", "a": 1}',
        '{"a": 18446744073709551616}',
        "[" * DEPTH_LIMIT + "[]" + "]" * DEPTH_LIMIT,
        '"\\ud83d"',
    ],
)
def test_the_quick_way_leaves_alone_what_it_would_read_otherwise(text: str) -> None:
    assert decode_quickly(text) is None


@pytest.mark.parametrize(
    "text", ['{"a": "\\\\"}', '{"a\\"": ["\\\\\\"", 1.5, "é"]}', "[[[]]]", '"a"']
)
def test_the_quick_way_reads_what_is_common(text: str) -> None:
    assert decode_quickly(text) == json.loads(text)


@given(value=VALUES, before=TEXTS, after=TEXTS)
def test_the_end_of_a_value_is_found_inside_a_longer_text(value: Any, before: str, after: str):
    text = json.dumps([value])
    assert find_end(f"{before}{text}{after}", len(before)) == len(before) + len(text)
