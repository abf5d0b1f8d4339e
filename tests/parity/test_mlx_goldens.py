"""``server: mlx`` against what the functions of mlx-lm 0.32.2 answered."""

from __future__ import annotations

from tests.parity import suite
from tests.parity.golden_sets import compare_own, load_own_requests


def test_every_answer_to_our_own_requests_is_reproduced() -> None:
    comparison = compare_own("mlx")
    assert comparison.counts.total() == len(suite.load_templates()) * len(load_own_requests())
    assert comparison.counts["differing"] == 0, comparison.report()
    # A role or text that is none, and kwargs that would cut or pad the prompt.
    refused = {line.split(":")[0] for line in comparison.unlike}
    assert refused == {"kwargs-of-the-call", "role-is-missing", "content-is-a-number"}
