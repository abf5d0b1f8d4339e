"""Where an output is: a path of a folder that a job can write, or a refusal in one line at the start."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

from pipeline.errors import UsageError, excerpt_of

_ADDRESS: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/")
# What stands beside an output has names that are so much longer: `.NAME.work-PID-0`.
_LONGER_NAME: Final = 30
# What stands in its work folder and in the set has paths that are so much longer.
_LONGER_PATH: Final = 250
_STORES: Final = "s3://, gs:// or az://"


def find_output(output: str, *, follow_link: bool = True) -> Path:
    """Return the folder that ``output`` names, behind a link or, without ``follow_link``, that itself.

    Raises `UsageError` for an address and for what is no path.
    """
    if match := _ADDRESS.match(output):
        raise UsageError(
            f"output: {excerpt_of(output)}: {match['scheme']} is nothing that a set is written to "
            f"here; expected a folder (prepare also writes to {_STORES})"
        )
    try:
        output.encode()
        path = Path(output).expanduser()
        return path.resolve() if follow_link else path.parent.resolve() / path.name
    except (ValueError, OSError, RuntimeError) as error:
        # A byte that is no UTF-8 or no byte of a name, a user or a home that is not there, a circle
        # of links.
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"output: {excerpt_of(output)}: {excerpt_of(words or error)}; expected the path of a folder"
        ) from error


def check_path(path: Path) -> None:
    """Refuse a path at which, or beside which, no file can have a name. Raises `UsageError`."""
    folder = path.parent
    try:
        while not folder.is_dir() and folder != folder.parent:
            folder = folder.parent
        most_name, most_path = (
            os.pathconf(folder, name) for name in ("PC_NAME_MAX", "PC_PATH_MAX")
        )
        # Raises where the system takes no such path, whether or not something is there.
        with suppress(FileNotFoundError):
            path.lstat()
    except OSError as error:
        raise UsageError(
            f"output: {excerpt_of(str(path))}: {error.strerror}; expected the path of a folder"
        ) from error
    longest = max(len(os.fsencode(part)) for part in path.parts)
    length = len(os.fsencode(path))
    if len(os.fsencode(path.name)) + _LONGER_NAME > most_name or longest > most_name:
        raise UsageError(
            f"output: {excerpt_of(path.name)}: a name of {longest} bytes; expected at most "
            f"{most_name - _LONGER_NAME}, so that what a job writes beside it has a name too"
        )
    if length + _LONGER_PATH > most_path:
        raise UsageError(
            f"output: {excerpt_of(str(path))}: a path of {length} bytes; expected at most "
            f"{most_path - _LONGER_PATH}, so that its files have paths too"
        )
