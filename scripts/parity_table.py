"""Print how our prompts compare with the answers of each server, as docs/server-parity.md holds it.

    python scripts/parity_table.py

Exits 1 where a prompt differs. Goldens that are not beside the repository are left out and named.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.prompt.request import SERVER_VERSIONS
from tests.parity.comparison import OUTCOMES, Comparison
from tests.parity.golden_sets import compare_own, compare_templates, compare_tokenizers

NAMES = {"vllm": "vLLM", "sglang": "SGLang"}
SETS: dict[str, Callable[[str], Comparison]] = {
    "real tokenizers, own template": compare_tokenizers,
    "real templates": compare_templates,
    "this project's templates and requests": compare_own,
}


def main() -> None:
    """Print the table."""
    differing = 0
    print(f"{datetime.now(UTC):%Y-%m-%d}\n")
    print(f"| server | answers for | lines | {' | '.join(OUTCOMES)} |")
    print(f"|---|---|{'---|' * (len(OUTCOMES) + 1)}")
    for server, name in NAMES.items():
        for title, compare in SETS.items():
            try:
                counts = compare(server).counts
            except pytest.skip.Exception as missing:
                print(f"{name}, {title}: {missing}", file=sys.stderr)
                continue
            cells = [counts.total(), *(counts[outcome] for outcome in OUTCOMES)]
            numbers = " | ".join(f"{cell:,}" for cell in cells)
            print(f"| {name} {SERVER_VERSIONS[server]} | {title} | {numbers} |")
            differing += counts["differing"]
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
