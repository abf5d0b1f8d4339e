"""transformers without torch: what a process that only prepares rows saves a second and 190 MB by.

torch must look absent while transformers is imported, and no longer: `datasets`, whose pickler asks for
it by name, breaks where the name stands for nothing.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, cast


def leave_out() -> None:
    """Let torch look absent to whoever imports it, until `give_back`; not where it is there already."""
    sys.modules.setdefault("torch", cast("Any", None))


def give_back() -> None:
    """Import what is used of transformers, which remembers that torch is absent, and end `leave_out`."""
    modules = cast("dict[str, Any]", sys.modules)
    if modules.get("torch", sys) is not None:
        return
    importlib.import_module("transformers.utils.chat_template_utils")
    cast("Any", importlib.import_module("transformers.utils.import_utils")).is_torch_available()
    _ = cast("Any", importlib.import_module("transformers")).AutoTokenizer
    del modules["torch"]
