"""Record which ids the tokenizers that vLLM loads give to the probe texts of ``tests/parity``.

Run by the Python of an environment with vLLM 0.33.0, on a folder of tokenizer folders:

    VLLM_PYTHON scripts/record_tokenizer_ids.py FOLDER

Only digests are written, to ``tests/parity/tokenizer_ids.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.parity import suite


def main() -> None:
    """Write the number of ids and their sha256 for each tokenizer."""
    # Only the server's environment has it.
    from vllm.tokenizers import get_tokenizer

    texts = suite.load_probe_texts()
    answers: dict[str, dict[str, object]] = {}
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        if (folder / "tokenizer_config.json").exists():
            tokenizer = get_tokenizer(str(folder))
            ids = [
                id_ for text in texts for id_ in tokenizer.encode(text, add_special_tokens=False)
            ]
            answers[folder.name] = {"n": len(ids), "sha256": suite.hash_ids(ids)}
    suite.TOKENIZER_IDS.write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
