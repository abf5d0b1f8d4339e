"""transformers without torch: what a process that only prepares rows saves a second and 190 MB by."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, cast

_NEEDED = (
    "transformers",
    "transformers.utils.import_utils",
    "transformers.utils.chat_template_utils",
)


def import_transformers_without_torch() -> None:
    """Import transformers so that it takes torch for absent, for as long as this process lives.

    Only while it is imported does torch look absent to everybody: `datasets` asks for it later.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if "torch" in sys.modules or "transformers" in sys.modules:
        return
    sys.modules["torch"] = cast("Any", None)
    try:
        for name in _NEEDED:
            importlib.import_module(name)
        # What is not installed is remembered.
        importlib.import_module("transformers.utils.import_utils").is_torch_available()
        _ = importlib.import_module("transformers").AutoTokenizer
    finally:
        del sys.modules["torch"]
