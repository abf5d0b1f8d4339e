"""What a file is that is no JSONL, told by how it begins, and what makes JSONL of it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Final

HEAD_BYTES: Final = 512
"""Bytes of a file that tell its kind: a header of tar is that long."""

_UNPACK: Final = "unpack it and give the files in it"
_TO_JSONL: Final = "pandas: read_{} and then to_json(PATH, orient='records', lines=True)"
_KINDS: Final = {
    b"PK\x03\x04": ("zip", _UNPACK),
    b"PK\x05\x06": ("zip", _UNPACK),
    b"BZh": ("bzip2", "`bunzip2`"),
    b"\xfd7zXZ\x00": ("xz", "`unxz`"),
    b"7z\xbc\xaf": ("7z", _UNPACK),
    b"Rar!\x1a\x07": ("rar", _UNPACK),
    b"\x04\x22\x4d\x18": ("lz4", "`unlz4`"),
    b"\xff\x06\x00\x00sNaPpY": ("snappy", "unpack it"),
    b"PAR1": ("Parquet", "let its name end in .parquet"),
    b"ARROW1": ("Arrow", "let its name end in .arrow"),
    b"\xff\xff\xff\xff": ("Arrow", "let its name end in .arrow"),
    b"FEA1": ("Feather", "write it again as Parquet"),
    b"ORC": ("ORC", _TO_JSONL.format("orc")),
    b"Obj\x01": ("Avro", "write it again as Parquet"),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("Excel or Word", _TO_JSONL.format("excel")),
    b"SQLite format 3\x00": ("SQLite", _TO_JSONL.format("sql")),
    b"\x89HDF\r\n\x1a\n": ("HDF5", _TO_JSONL.format("hdf")),
    b"\x93NUMPY": ("NumPy", "write its rows as JSONL"),
    b"%PDF-": ("PDF", "write its text as JSONL"),
    **{
        bytes([0x80, protocol]): ("pickle", f"where you trust it, {_TO_JSONL.format('pickle')}")
        for protocol in range(2, 6)
    },
}
_OFFICE: Final = ("Excel or Word", _TO_JSONL.format("excel"))


def kind_of(head: bytes) -> tuple[str, str] | None:
    """Return the kind of file that begins with ``head``, and its cure; None for what may be text."""
    if head.startswith(b"PK\x03\x04") and (b"[Content_Types].xml" in head or b"docProps/" in head):
        return _OFFICE
    if _is_tar(head):
        return "tar", "unpack it (`tar -xf`) and give the files in it"
    # ORC and others are letters, which a line of text may begin with; none is JSON.
    return next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), None)


def _is_tar(head: bytes) -> bool:
    """Say whether a file begins with a header of tar: its sum, in octal, tells one of any age."""
    if len(head) < HEAD_BYTES or not head[0]:
        return False
    digits = head[148:156].strip(b" \0")
    if not digits or not digits.isdigit() or digits.translate(None, b"01234567"):
        return False
    return int(digits, 8) == sum(head[:148]) + 8 * ord(" ") + sum(head[156:HEAD_BYTES])


_OF_CSV: Final = (
    "`python -c 'import csv, json, sys; [print(json.dumps(row)) for row in "
    "csv.DictReader(sys.stdin{})]' < FILE > FILE.jsonl`"
)
"""Keeps each cell as the text that it is; what infers types makes numbers of ids."""
_DELIMITERS: Final = {
    ",": "",
    "\t": ', delimiter="\\t"',
    ";": ', delimiter=";"',
    "|": ', delimiter="|"',
}
_MARKUP: Final = {
    "<?xml": ("XML", "write its records as JSONL"),
    "<!doctype": ("HTML", "write its text as JSONL"),
    "<html": ("HTML", "write its text as JSONL"),
    "%yaml": ("YAML", "write each of its documents as one line of JSON"),
    "---": ("YAML", "write each of its documents as one line of JSON"),
}


def text_kind_of(head: Sequence[str]) -> tuple[str, str] | None:
    """Return the kind of text that begins with these lines, and its cure; None for what may be JSONL.

    Args:
        head: the first three lines that are not blank, or all of them where there are fewer.

    One bad line tells nothing: a file is named only where no line of its head can begin an object.

    >>> text_kind_of(["id;context", "1;a"])[0]
    'CSV'
    >>> text_kind_of(["id,context", '{"id": "a"}']) is None
    True
    """
    starts = [line.lstrip("\ufeff \t\r") for line in head]
    if not starts or any(start.startswith(("{", "[")) for start in starts):
        return None
    beginning = starts[0][:16].lower()
    for mark, kind in _MARKUP.items():
        if beginning.startswith(mark):
            return kind
    for delimiter, argument in _DELIMITERS.items():
        if _is_table(head, delimiter):
            return "TSV" if delimiter == "\t" else "CSV", _OF_CSV.format(argument)
    return None


def _is_table(head: Sequence[str], delimiter: str) -> bool:
    """Say whether lines are a row of names and rows of as many cells."""
    if len(head) < 2:
        return False
    try:
        # A cell may hold newlines, so that the last row is as yet without its end.
        names, *rows = csv.reader([line + "\n" for line in head], delimiter=delimiter)
    except csv.Error:
        return False
    if len(names) < 2 or len(set(names)) < len(names) or not all(map(_is_name, names)):
        return False
    return all(len(row) == len(names) for row in rows[:-1]) and 1 < len(rows[-1]) <= len(names)


def _is_name(cell: str) -> bool:
    """Say whether a cell may be the name of a column."""
    return 0 < len(cell.strip()) <= 100 and not cell.strip()[0].isdecimal()
