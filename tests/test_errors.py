"""Errors pickle, name what they replace, carry their exit code, and show short safe excerpts."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import errors
from pipeline.errors import EXCERPT_LIMIT, ContextFrozenError, Rejected, excerpt_of

SAMPLES = [
    errors.UsageError("max_len: found 0; expected at least 2"),
    errors.UnreadableFile("a.jsonl", 3, "the file is cut"),
    errors.Rejected("wrong_type", "id: expected text", ["x"]),
    errors.Rejected("missing_field", "id: missing"),
    errors.DataRefused("2 of 3 lines were rejected"),
    errors.WorkerFailed("a worker process was ended by SIGKILL: shard 3: a.jsonl from line 9"),
    errors.StoreFailed("s3://bucket/set: the connection was lost; run again"),
    errors.SealMismatch("seal.templates", "abc", "def", "prepare it again"),
    errors.BadRow("row 0: context_len is 9 for 4 tokens"),
    errors.UnsupportedModel("the model has no cache"),
    errors.HubFailed("push to org/name: the Hub answered 503: ; run the same command again"),
]


def subclasses_of(kind: type) -> set[type]:
    return {kind}.union(*(subclasses_of(below) for below in kind.__subclasses__()))


def test_every_error_of_the_module_has_a_sample_here() -> None:
    ours = {
        kind for kind in subclasses_of(ContextFrozenError) if kind.__module__ == errors.__name__
    }
    assert ours - {ContextFrozenError} == {type(sample) for sample in SAMPLES}


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_the_way_back_from_a_worker(error: ContextFrozenError) -> None:
    back = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)
    assert back.exit_code == error.exit_code


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_is_also_the_stdlib_error_it_replaces(error: ContextFrozenError) -> None:
    others = {
        errors.UnsupportedModel: TypeError,
        errors.WorkerFailed: RuntimeError,
        errors.HubFailed: OSError,
        errors.StoreFailed: OSError,
    }
    assert isinstance(error, others.get(type(error), ValueError))


def test_only_wrong_usage_ends_with_2() -> None:
    codes = {type(error): error.exit_code for error in SAMPLES}
    assert codes.pop(errors.UsageError) == 2
    assert set(codes.values()) == {1}


def test_an_unreadable_file_says_path_place_and_code() -> None:
    error = errors.UnreadableFile("logs/a.jsonl.gz", 17, "the file is cut")
    assert str(error) == "logs/a.jsonl.gz:17: unreadable_file: the file is cut"


def test_a_reject_says_code_reason_and_what_was_found() -> None:
    assert str(Rejected("wrong_type", "id: expected text", 1.5)) == (
        "wrong_type: id: expected text (found 1.5)"
    )
    assert str(Rejected("missing_field", "id: missing")) == "missing_field: id: missing"


@pytest.mark.parametrize(
    ("found", "shown"), [(None, "None"), (False, "False"), (0, "0"), ([], "[]")]
)
def test_a_falsy_value_that_was_found_is_shown(found: object, shown: str) -> None:
    assert Rejected("wrong_type", "expected text", found).excerpt == shown


def test_a_seal_mismatch_names_the_key_and_both_values() -> None:
    error = errors.SealMismatch("seal.templates", "old" * 100, "new", "prepare it again")
    assert error.key == "seal.templates"
    assert "seal.templates differs" in str(error)
    assert "oldold" in str(error)
    assert "found new; prepare it again" in str(error)
    assert len(str(error)) < 3 * EXCERPT_LIMIT


@given(st.one_of(st.text(max_size=400), st.lists(st.text(max_size=60)), st.binary(max_size=200)))
def test_an_excerpt_is_short_and_safe_on_every_terminal(value: object) -> None:
    excerpt = excerpt_of(value)
    assert len(excerpt) <= EXCERPT_LIMIT
    assert excerpt.isprintable()
    excerpt.encode("utf-8")


def test_an_excerpt_of_a_lone_surrogate_can_be_written() -> None:
    assert excerpt_of("a\ud800b") == "a\\ud800b"


@pytest.mark.parametrize(("length", "is_cut"), [(79, False), (80, False), (81, True)])
def test_an_excerpt_is_cut_only_where_it_is_longer_than_the_limit(
    length: int, is_cut: bool
) -> None:
    excerpt = excerpt_of("x" * length)
    assert excerpt.endswith("…") == is_cut
    assert is_cut or excerpt == "x" * length


def test_an_excerpt_hides_escapes_from_the_terminal() -> None:
    assert excerpt_of("\x1b[31mred\x07") == "\\x1b[31mred\\x07"


@given(st.text(st.characters(categories=["L", "N", "P"]), max_size=EXCERPT_LIMIT))
def test_an_excerpt_of_short_printable_text_is_the_text(text: str) -> None:
    assert excerpt_of(text) == text
