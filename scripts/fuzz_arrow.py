"""Arrow and Parquet files that lie, through every verb that reads them: no signal, no traceback.

``python scripts/fuzz_arrow.py --files 1000 --seed 1``: the same seed gives the same files. Each is a
good file that was changed once to three times: a bit, a number of the metadata or the offsets, its
length. It stands in for the rows of a set (every second time with a manifest that was sealed anew, as
a forger would) for ``report``, ``inspect``, ``diff``, ``verify`` and ``load``, and is an input of
``prepare``. Ends with 1 where one of them ended otherwise than with a result or a sentence.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cli.command import main
from pipeline.errors import ContextFrozenError
from pipeline.sets.damage import hash_manifest
from pipeline.sets.load import load
from pipeline.sets.place import MANIFEST

TOKENIZER = Path(__file__).resolve().parents[1] / "configs" / "tokenizer"
SHARD = "train/data-00000-of-00001.arrow"

_NUMBERS = (0, 1, -1, 8, 16, 100, 255, 4096, 65536, 2**30, 2**31 - 1, -(2**31))
_LONG_NUMBERS = (*_NUMBERS, 2**40, -(2**40), 2**62, 2**63 - 1)


def lie(content: bytes, choose: random.Random) -> bytes:
    """Return a file with one to three changes that keep it near to a good one."""
    changed = bytearray(content)
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        kind = choose.random()
        if kind < 0.35:
            changed[choose.randrange(len(changed))] ^= 1 << choose.randrange(8)
        elif kind < 0.55:
            place = choose.randrange(len(changed) - 4) & ~3
            changed[place : place + 4] = struct.pack("<i", choose.choice(_NUMBERS))
        elif kind < 0.75:
            place = choose.randrange(len(changed) - 8) & ~7
            changed[place : place + 8] = struct.pack("<q", choose.choice(_LONG_NUMBERS))
        elif kind < 0.85:
            place = choose.randrange(len(changed) - 4) & ~3
            (number,) = struct.unpack_from("<i", changed, place)
            number = number + choose.choice((-8, -4, -1, 1, 4, 8, 64, 10_000))
            struct.pack_into("<I", changed, place, number % 2**32)
        elif kind < 0.92:
            del changed[choose.randrange(1, len(changed)) :]
            changed += bytes(max(0, 16 - len(changed)))
        else:
            place = choose.randrange(len(changed))
            changed[place : place + 16] = choose.randbytes(16)
    return bytes(changed)


def make_inputs() -> dict[str, bytes]:
    """Return good input files of each format by the end of their name."""
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello you"}]
    rows = [{"id": f"r{at}", "messages": chat, "weight": 0.5, "reason": "é"} for at in range(24)]
    table = pa.Table.from_pylist(rows)
    table = table.append_column("memories", pa.array([["a", "b"], None, []] * 8))
    table = table.append_column("conversation", pa.array(["c"] * 24).dictionary_encode())
    files: dict[str, bytes] = {}
    for name, options in (("plain", None), ("zstd", "zstd")):
        for kind, start in (("file", pa.ipc.new_file), ("stream", pa.ipc.new_stream)):
            sink = io.BytesIO()
            with start(
                sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=options)
            ) as w:
                w.write_table(table, max_chunksize=10)
            files[f"{name}-{kind}.arrow"] = sink.getvalue()
        sink = io.BytesIO()
        pq.write_table(table, sink, compression=options or "none", row_group_size=10)
        files[f"{name}.parquet"] = sink.getvalue()
    return files


def make_set(folder: Path) -> Path:
    """Make a set of a few short rows and return its folder."""
    lines = folder / "good.jsonl"
    with lines.open("w", encoding="utf-8") as file:
        for at in range(24):
            example = {"id": f"e{at}", "context": f"{at}+1=", "continuation": f"{at + 1}"}
            file.write(json.dumps({**example, "reason": "sum", "memories": ["m", "n"]}) + "\n")
    made = folder / "good"
    code, said = _say(["prepare", *_SETTINGS, "--input", str(lines), "--output", str(made)])
    assert code == 0, said
    return made


_SETTINGS = ("--tokenizer", str(TOKENIZER), "--num_proc", "1", "--no-report")


def _say(args: list[str]) -> tuple[int, str]:
    """Run the command here and return its exit code and what it said."""
    words = io.StringIO()
    with redirect_stdout(words), redirect_stderr(words):
        code = main(args)
    return code, words.getvalue()


def _load(folder: Path) -> tuple[int, str]:
    try:
        rows = load(folder)["train"]
        # What a trainer does next.
        return 0, str(len(rows.with_format("arrow")[:]))
    except ContextFrozenError as error:
        return error.exit_code, str(error)


def list_steps(good: Path, copy: Path, table: Path, output: Path) -> dict[str, Callable[[], Any]]:
    """Return what is done with a set and an input, by name."""
    return {
        "report": lambda: _say(["report", str(copy)]),
        "inspect": lambda: _say(["inspect", str(copy), "--row", "2"]),
        "diff": lambda: _say(["diff", str(good), str(copy)]),
        "verify": lambda: _say(["verify", str(copy)]),
        "load": lambda: _load(copy),
        "input": lambda: _say(
            ["prepare", *_SETTINGS, "--input", str(table), "--output", str(output)]
        ),
    }


def seal(folder: Path, shard: bytes) -> None:
    """Make the manifest name the file of rows as it is now."""
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    manifest["files"][SHARD] |= {
        "bytes": len(shard),
        "sha256": hashlib.sha256(shard).hexdigest(),
    }
    manifest["sha256"] = hash_manifest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")


def try_files(folder: Path, seed: int, first: int, last: int) -> None:
    """Try the files ``first`` to ``last`` - 1 here, and print a line before each step and after it."""
    good = folder / "good"
    shard, inputs = (good / SHARD).read_bytes(), make_inputs()
    for at in range(first, last):
        choose = random.Random(f"{seed} {at}")
        copy, output = folder / "copy", folder / "output"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(good, copy)
        changed = lie(shard, choose)
        (copy / SHARD).write_bytes(changed)
        if at % 2:
            seal(copy, changed)
        name = sorted(inputs)[at % len(inputs)]
        table = folder / f"lying-{name}"
        table.write_bytes(lie(inputs[name], choose))
        for step, run in list_steps(good, copy, table, output).items():
            print(f"{at} {step}", flush=True)
            begun = time.monotonic()
            try:
                code, said = run()
            except Exception:  # noqa: BLE001 (this is what is looked for)
                code, said = -1, traceback.format_exc()
            ending = str(code) if code in (0, 1, 2) and "Traceback" not in said else "traceback"
            if time.monotonic() - begun > 60:
                ending = "slow"
            print(json.dumps([ending, said[-2000:]]), flush=True)
        # A job that was refused for its rejects keeps its shards beside them.
        kept = {".output.work"} if (folder / "output.rejects.jsonl").exists() else set[str]()
        left = sorted({path.name for path in folder.glob(".*")} - kept)
        print(f"{at} leftovers", flush=True)
        print(json.dumps(["traceback" if left else "0", str(left)]), flush=True)
        shutil.rmtree(output, ignore_errors=True)
        shutil.rmtree(folder / ".output.work", ignore_errors=True)
        (folder / "output.rejects.jsonl").unlink(missing_ok=True)
        table.unlink()


def find_faults(files: int, seed: int, folder: Path) -> tuple[list[str], Counter[str]]:
    """Return what ended as it must not, and how often each step ended how."""
    if not (folder / "good").exists():
        make_set(folder)
    faults: list[str] = []
    endings: Counter[str] = Counter()
    first = 0
    while first < files:
        args = [__file__, "--folder", str(folder), "--seed", str(seed)]
        done = subprocess.run(
            [sys.executable, *args, "--first", str(first), "--files", str(files)],
            capture_output=True,
            text=True,
            check=False,
        )
        place = ""
        for place, (ending, said) in _read_pairs(done.stdout):
            endings[f"{place.split()[1]} {ending}"] += 1
            if ending not in ("0", "1", "2"):
                faults.append(f"file {place}: {ending}: {said}")
        if done.returncode == 0:
            break
        lines = done.stdout.splitlines()
        faults.append(f"file {lines[-1] if lines else first}: ended with {done.returncode}")
        endings[f"{done.returncode}"] += 1
        first = int(lines[-1].split()[0]) + 1 if lines else files
    return faults, endings


def _read_pairs(text: str) -> Iterator[tuple[str, list[str]]]:
    lines = text.splitlines()
    for place, result in zip(lines[::2], lines[1::2], strict=False):
        yield place, json.loads(result)


def _run() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--first", type=int)
    args = parser.parse_args()
    if args.first is not None:
        try_files(args.folder, args.seed, args.first, args.files)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        faults, endings = find_faults(args.files, args.seed, args.folder or Path(folder))
    print("\n".join(f"{number:6} {ending}" for ending, number in sorted(endings.items())))
    print("\n".join(faults) or "no signal, no traceback, nothing left behind")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(_run())
