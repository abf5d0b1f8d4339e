"""Models that SGLang 0.5.23 renders with a conversation template of its own, told by their path.

SGLang matches these patterns on the whole path or Hub name that it serves, before it looks at the
tokenizer's template: a parent folder called ``janus`` is enough. Only ``--chat-template`` goes first.
"""

from __future__ import annotations

import re
from typing import Final

from pipeline.errors import UsageError

# SGLang 0.5.23, ``parser/conversation.py``: ``MODEL_TYPE_TO_TEMPLATE`` and the matching functions,
# in the order in which they are asked; the types are asked from the second function on.
_BY_TYPE: Final = {
    "internvl_chat": "internvl-2-5",
    "deepseek_vl_v2": "deepseek-vl2",
    "multi_modality": "janus-pro",
    "phi4mm": "phi-4-mm",
    "minicpmv": "minicpmv",
    "minicpmo": "minicpmo",
    "moss_vl": "moss-vl",
    "deepseek-ocr": "deepseek-ocr",
    "unlimited-ocr": "unlimited-ocr",
    "paddleocr_vl": "paddle-ocr",
    "whisper": "whisper",
}
_BEFORE_TYPE: Final = ((r"\bpoints\b", "points-v15-chat"), (r"moss.*vl", "moss-vl"))
_BY_PATH: Final = (
    (r"internvl", "internvl-2-5"),
    (r"janus", "janus-pro"),
    (r"vicuna|llava-v1\.5|llava-next-video-7b", "vicuna_v1.1"),
    (r"deepseek.*vl2", "deepseek-vl2"),
    (
        r"llava-v1\.6-34b|llava-v1\.6-yi-34b|llava-next-video-34b|llava-onevision-qwen2",
        "chatml-llava",
    ),
    (r"minicpm-v", "minicpmv"),
    (r"minicpm-o", "minicpmo"),
    (r"phi-4-multimodal", "phi-4-mm"),
    (r"deepseek-ocr", "deepseek-ocr"),
    (r"unlimited", "unlimited-ocr"),
    (r"paddleocr", "paddle-ocr"),
    (r"whisper", "whisper"),
)
# From 4.6 on, MiniCPM-V is served with its own template.
_OWN_MINICPM: Final = re.compile(r"minicpm-(v|o)-4[._][67]", re.IGNORECASE)
_OWN_MINICPM_TYPES: Final = ("minicpmv4_6", "minicpmv4_7")
_MINICPM: Final = ("minicpmv", "minicpmo")


def find_conversation_template(model_path: str, model_type: str | None) -> str | None:
    """Return the name of the conversation template that SGLang takes by itself, or None.

    SGLang 0.5.23, ``parser/conversation.py``: ``get_conv_template_by_model_path``.

    >>> find_conversation_template("lmsys/vicuna-7b-v1.5", "llama")
    'vicuna_v1.1'
    >>> find_conversation_template("Qwen/Qwen3-8B", "qwen3") is None
    True
    """
    for pattern, name in _BEFORE_TYPE:
        if re.search(pattern, model_path, re.IGNORECASE):
            return name
    if model_type in _BY_TYPE:
        return _BY_TYPE[model_type]
    own_minicpm = model_type in _OWN_MINICPM_TYPES or _OWN_MINICPM.search(model_path)
    for pattern, name in _BY_PATH:
        if own_minicpm and name in _MINICPM:
            continue
        if re.search(pattern, model_path, re.IGNORECASE):
            return name
    return None


def refuse_conversation_template(model_path: str, name: str) -> UsageError:
    """Return the error for a model that SGLang renders with its conversation template ``name``."""
    return UsageError(
        f"server: sglang renders {model_path!r} with its conversation template {name!r}, told by the "
        "path or the model type, not with the tokenizer's chat template, and that is not reproduced "
        "here; serve with --chat-template FILE and give the same chat_template: FILE, or serve from "
        "another path and give that as tokenizer"
    )
