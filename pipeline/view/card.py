"""The card: the ``README.md`` that a stranger finds in the folder of a set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Names the files of each split: datasets 4.0.0 takes a split of one shard for JSON, since the saved
# `state.json` beside the shard counts as many.
_CARD = """\
---
configs:
- config_name: default
  data_files:
{data_files}
---

# Context-frozen training set

Token rows for training a chat model on better continuations while the context before each stays
frozen. Every context is, id for id, the prompt that the server ({server}) builds.

{rows} rows, {tokens} tokens ({context} context, {continuation} continuation).
{lines} input lines were read; {rejects} of them were rejected (`rejects.jsonl` says which and why).
{shortened} rows were shortened to `max_len` {max_len} ({dropped} tokens removed).

```python
from datasets import load_from_disk

rows = load_from_disk("this folder")["train"]
row = rows[0]
context = row["input_ids"][: row["context_len"]]
continuation = row["input_ids"][row["context_len"] :]
```

| file | what it is |
|---|---|
| `train/` | the rows, an Arrow data set |
| `manifest.json` | counts, settings, the content digest, and the seal: all that determined the tokens |
| `examples.sha256` | which examples are in the set: the sha256 of each line, and its id |
| `rejects.jsonl` | input lines that could not become rows: file, line, id, code, reason, excerpt |

| column | what it is |
|---|---|
| `input_ids` | context, then continuation with its end-of-turn token |
| `labels` | -100 on the context, the ids on the continuation (unshifted) |
| `attention_mask` | ones |
| `context_len`, `total_len` | index of the first token that is not context; length, in tokens |
| `context_hash` | equal for rows whose contexts are equal |
| `dropped_tokens`, `dropped_messages` | what the length policy removed |
| `flags` | what is worth knowing of the row; empty for most |
| `id`, `conversation`, `source`, `decision_idx` | where the row came from (`source` is file:line) |
| `preference`, `reason`, `memories`, `weight` | what the example said of itself |

Content digest: `{digest}`. `context-frozen verify` checks the set against it.
"""


def write_card(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the card of the set in ``folder`` from its manifest."""
    counts, seal = manifest["counts"], manifest["seal"]
    server = " ".join(part for part in (seal["server"]["name"], seal["server"]["version"]) if part)
    data_files = [
        f"  - split: {split}\n    path: {split}/*.arrow" for split in counts["rows_by_split"]
    ]
    text = _CARD.format(
        data_files="\n".join(data_files),
        server=server,
        rows=counts["rows"],
        tokens=counts["tokens"]["total"],
        context=counts["tokens"]["context"],
        continuation=counts["tokens"]["continuation"],
        dropped=counts["tokens"]["dropped"],
        lines=counts["lines"],
        rejects=counts["rejects"],
        shortened=counts["rows_shortened"],
        max_len=seal["settings"]["max_len"],
        digest=manifest["digest"],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
