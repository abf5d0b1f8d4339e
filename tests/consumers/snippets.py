"""Snippets of Python from pages and cards, run as a user would run them."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest


def run_snippet(text: str, script: Path) -> dict[str, Any]:
    """Run a snippet as the file ``script``, see that what trains has trained, and return its names."""
    if "from trl" in text:
        pytest.importorskip("trl", reason="trl is not installed: pip install trl==1.16.0")
    script.write_text(text, encoding="utf-8")
    names = runpy.run_path(str(script), run_name="__main__")
    if "trainer" in names:
        assert names["trainer"].state.global_step > 0
    if "optimizer" in names:
        assert names["optimizer"].state
    return names
