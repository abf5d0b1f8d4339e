"""The project's own golden answers: which requests are asked, and how a real server is asked.

``golden.jsonl`` holds, per template and conversation, what vLLM's render server answered: the prompt
(``text``, the decoding of the ids), the number of its ids and their sha256, or ``error``.
``harmony_golden.jsonl`` holds the same for gpt-oss, where no template is asked. SGLang has no render
server: ``sglang_golden.jsonl`` holds what the request code of its wheel made of the same requests on
a CPU, with the packages of kernels stubbed; ``mlx_golden.jsonl`` what the functions of mlx-lm's made.
"""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TEMPLATES = HERE / "templates"
GOLDEN = HERE / "golden.jsonl"
HARMONY_GOLDEN = HERE / "harmony_golden.jsonl"
SGLANG_GOLDEN = HERE / "sglang_golden.jsonl"
MLX_GOLDEN = HERE / "mlx_golden.jsonl"
SGLANG_CONVERSATIONS = HERE / "sglang_conversations.jsonl"
"""Requests about rules that SGLang alone has; it was asked the others too."""
VLLM_VERSIONS = HERE / "vllm_versions.jsonl"
VLLM_VERSION_CONVERSATIONS = HERE / "vllm_version_conversations.jsonl"
"""Requests about rules that came or went; every release was asked the others too."""
TOKENIZER_IDS = HERE / "tokenizer_ids.json"
"""Digests of the ids that vLLM's tokenizers gave to `load_probe_texts`, by tokenizer folder."""
HARMONY_DATE = "2025-06-28"
"""What ``VLLM_SYSTEM_START_DATE`` was when ``harmony_golden.jsonl`` was recorded."""

_REQUEST_FIELDS = ("messages", "tools", "chat_template_kwargs", "reasoning_effort")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def load_conversations() -> dict[str, dict[str, Any]]:
    """Return the requests by name; each says which ``rule`` it is about.

    One with ``same_as`` is spelt in a way that the HTTP schema refuses and must render like the one
    named there; the others are what the server was asked.
    """
    return {item["name"]: item for item in read_lines(HERE / "conversations.jsonl")}


def load_templates() -> dict[str, str]:
    """Return the project's templates by name."""
    return {
        path.stem: path.read_text(encoding="utf-8") for path in sorted(TEMPLATES.glob("*.jinja"))
    }


def load_probe_texts() -> list[str]:
    """Return texts that tell tokenizers apart: every prompt that the server rendered, and edge cases.

    White space at the start and after control tokens, digits, scripts, composed and decomposed
    letters, and control tokens of several families inside plain text.
    """
    prompts = {answer["text"] for answer in read_lines(GOLDEN) if "text" in answer}
    edges = {
        *(" x", "  x", "\nx", " \n x", "\t", "x ", "a  b", "x\n\n\ny", "\u00a0x", "\u3000x", ""),
        *("a</s>b", "</s> b", "<s> a", "<|user|>\nhi<|end|>\n<|assistant|>", "<|eot_id|>\n\nx"),
        *("<|im_start|>user\n hi<|im_end|>\n", "<start_of_turn>model\n", "[INST] x [/INST] y"),
        *(
            "<think>\n\n</think>\n\n4",
            "1234567890 3.14",
            "don't I'LL we'Ve",
            "def f(x):\n\treturn  x",
        ),
        *(
            "e\u0301 \u00e9 \ufb01 \u2075",
            "नमस्ते",
            "مرحبا",
            "電車に乗る",
            "👩‍👩‍👧‍👦🇵🇪",
            "\x00\x07\x1b",
            "z" * 600,
        ),
    }
    return sorted(prompts | edges)


def hash_ids(ids: Sequence[int]) -> str:
    """Return the sha256 (hex) of ids written in decimal with one space between."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()


def record_templates(server: str) -> Iterator[dict[str, Any]]:
    """Yield the server's answer for each template and each conversation that it can be asked."""
    asked = [item for item in load_conversations().values() if "same_as" not in item]
    for template, source in load_templates().items():
        for conversation in asked:
            answer = ask(server, conversation, chat_template=source)
            yield {"template": template, "conversation": conversation["name"], **answer}


def record_harmony(server: str) -> Iterator[dict[str, Any]]:
    """Yield the answer of a server for gpt-oss for each conversation that it can be asked."""
    for conversation in load_conversations().values():
        if "same_as" not in conversation:
            yield {"conversation": conversation["name"], **ask(server, conversation)}


def ask(server: str, conversation: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return ``text``, ``n`` and ``sha256`` of the prompt, or ``error``.

    Tools go with ``tool_choice: none``, which spares the server a parser and changes nothing.
    """
    fields = {
        key: conversation[key] for key in _REQUEST_FIELDS if conversation.get(key) is not None
    }
    model = _get(f"{server}/v1/models")["data"][0]["id"]
    body = {"model": model, "tool_choice": "none", **fields, **more}
    try:
        ids = _post(f"{server}/v1/chat/completions/render", body)["token_ids"]
    except urllib.error.HTTPError as error:
        words = json.loads(error.read())["error"]["message"]
        return {"error": words.splitlines()[0][:120]}
    text = _post(f"{server}/detokenize", {"model": model, "tokens": ids})["prompt"]
    return {"text": text, "n": len(ids), "sha256": hash_ids(ids)}


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as reply:
        return json.load(reply)


def _post(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)
