"""One README for several sets: sections are put in and replaced, words of others stay."""

from __future__ import annotations

import pytest
from huggingface_hub import DatasetCard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.sets.hub.card_sections import holds_sections, merge_card, read_configs

DIGESTS = {name: name * 64 for name in "abcdef"}


def card(body: str, yaml: str = "tags: [context-frozen]") -> DatasetCard:
    return DatasetCard(f"---\n{yaml}\n---\n{body}")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("def")), min_size=1, max_size=6))
def test_whatever_the_order_each_config_has_one_section_the_last_one(
    pushes: list[tuple[str, str]],
) -> None:
    text = "---\nlicense: mit\n---\nWords.\n"
    for config_name, digest in pushes:
        text = merge_card(text, card(f"{config_name} {digest}"), config_name, DIGESTS[digest])
    body = str(DatasetCard(text).text)
    assert body.startswith("Words.\n")
    for config_name, digest in dict(pushes).items():
        assert body.count(f"<!-- context-frozen {config_name} ") == 1
        assert f"-->\n{config_name} {digest}\n<!-- end of {DIGESTS[digest]} -->" in body
    assert DatasetCard(text).data.to_dict()["license"] == "mit"


def test_text_of_a_set_cannot_end_its_section() -> None:
    evil = f"<!-- end of {DIGESTS['b']} -->\n<!-- context-frozen y {DIGESTS['c']} -->"
    text = merge_card(None, card(evil), "x", DIGESTS["a"])
    text = merge_card(text, card("of y"), "y", DIGESTS["d"])
    text = merge_card(text, card("new"), "x", DIGESTS["e"])
    body = str(DatasetCard(text).text)
    assert evil not in body
    assert "new" in body
    assert "of y" in body


def test_a_section_whose_end_was_edited_away_is_left_as_it_is() -> None:
    broken = f"---\n{{}}\n---\n<!-- context-frozen x {DIGESTS['a']} -->\nWords.\n"
    assert not holds_sections(broken)
    text = merge_card(broken, card("new"), "x", DIGESTS["b"])
    assert "Words.\n" in text
    assert "new" in text


def test_what_the_set_says_wins_and_lists_are_joined() -> None:
    old = "---\nlicense: mit\nlanguage: de\ntags: [x]\nsize_categories: [1K<n<10K]\nmine: 1\n---\n"
    new = card("b", "license: apache-2.0\nlanguage: [en]\ntags: [y, x]\nsize_categories: [n<1K]")
    data = DatasetCard(merge_card(old, new, "x", DIGESTS["a"])).data.to_dict()
    assert data["license"] == "apache-2.0"
    assert data["language"] == ["de", "en"]
    assert data["tags"] == ["x", "y"]
    assert data["size_categories"] == ["1K<n<10K"]
    assert data["mine"] == 1


def test_a_set_without_a_licence_leaves_the_one_that_is_there() -> None:
    data = DatasetCard(merge_card("---\nlicense: mit\n---\n", card("b"), "x", DIGESTS["a"])).data
    assert data.to_dict()["license"] == "mit"


def test_a_lone_set_pushed_again_says_its_own_size() -> None:
    first = merge_card(None, card("b", "size_categories: [n<1K]"), "x", DIGESTS["a"])
    again = merge_card(first, card("b", "size_categories: [1K<n<10K]"), "x", DIGESTS["b"])
    assert DatasetCard(again).data.to_dict()["size_categories"] == ["1K<n<10K"]


def test_entries_of_the_config_go_and_those_of_others_stay() -> None:
    old = "---\nconfigs:\n- config_name: x\n- config_name: y\ndataset_info:\n  features: []\n---\n"
    data = DatasetCard(merge_card(old, card("b"), "x", DIGESTS["a"])).data.to_dict()
    assert data["configs"] == [{"config_name": "y"}]
    # Of the config `default`, whose name `datasets` leaves out of a single entry.
    assert data["dataset_info"] == [{"config_name": "default", "features": []}]


@pytest.mark.parametrize("yaml", ["a: [", "- a", "a: b: c"])
def test_yaml_that_cannot_be_read_is_refused(yaml: str) -> None:
    text = f"---\n{yaml}\n---\n"
    for read in (read_configs, lambda found: merge_card(found, card("b"), "x", DIGESTS["a"])):
        with pytest.raises(UsageError, match="mend it there first"):
            read(text)
