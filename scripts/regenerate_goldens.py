"""Ask a running vLLM 0.33.0 render server for the golden answers of ``tests/parity``.

    scripts/regenerate_goldens.py --server http://127.0.0.1:8100            golden.jsonl
    scripts/regenerate_goldens.py --server http://127.0.0.1:8101 --harmony  harmony_golden.jsonl

The first server has ``configs/tokenizer`` and ``--trust-request-chat-template``; the second has a
gpt-oss tokenizer and ``VLLM_SYSTEM_START_DATE=2025-06-28`` in its environment.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.parity import suite


def main() -> None:
    """Write the answers, one JSON object a line."""
    parser = argparse.ArgumentParser(description="Record the golden answers of tests/parity.")
    parser.add_argument("--server", required=True, help="URL of the render server")
    parser.add_argument("--harmony", action="store_true", help="the server renders gpt-oss")
    arguments = parser.parse_args()
    record = suite.record_harmony if arguments.harmony else suite.record_templates
    target = suite.HARMONY_GOLDEN if arguments.harmony else suite.GOLDEN
    lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in record(arguments.server)]
    target.write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} answers in {target}")


if __name__ == "__main__":
    main()
