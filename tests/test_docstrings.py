"""Every example in a docstring of the package does what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import pipeline
from tests.conftest import ROOT

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(pipeline.__path__, f"{pipeline.__name__}.")
)


def doctests_of(name: str) -> list[doctest.DocTest]:
    module = importlib.import_module(name)
    return [test for test in doctest.DocTestFinder().find(module) if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Paths in examples count from the repository.
    monkeypatch.chdir(ROOT)
    module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.failed == 0
    runnable = [
        example
        for test in doctests_of(name)
        for example in test.examples
        if not example.options.get(doctest.SKIP)
    ]
    assert result.attempted == len(runnable)


def test_the_library_face_has_examples() -> None:
    named = {test.name for name in MODULES for test in doctests_of(name)}
    assert {
        "pipeline.examples.example.TrainingExample",
        "pipeline.rows.example_tokenizer.ExampleTokenizer",
        "pipeline.config.config_from_mapping",
        "pipeline.tokens.encoder.TextEncoder",
        "pipeline.rows.lengths.fit_context",
    } <= named


@pytest.mark.parametrize("name", pipeline.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    public = getattr(pipeline, name)
    assert public.__doc__
    assert public.__name__ == name


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tokenise'"):
        _ = pipeline.tokenise  # pyright: ignore[reportAttributeAccessIssue]


def test_public_names_are_listed_for_completion() -> None:
    assert dir(pipeline) == sorted(pipeline.__all__)
