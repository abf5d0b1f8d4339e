"""Compressed content comes back whole, or the file is an error."""

from __future__ import annotations

import gzip
import io
import lzma
import pickle
import random
import struct
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.lines import archive
from pipeline.lines.archive import BrokenArchive, decompressed

PACKED: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstandard.compress}
SKIPPABLE_FRAME = struct.pack("<II", 0x184D2A57, 5) + b"hello"


def content_of(packed: bytes, name: str = "a.jsonl", chunk_bytes: int = 2**20) -> bytes:
    chunks = (packed[i : i + chunk_bytes] for i in range(0, len(packed), chunk_bytes))
    return b"".join(decompressed(chunks, name))


@given(
    parts=st.lists(st.binary(max_size=300), min_size=1, max_size=4),
    suffix=st.sampled_from(sorted(PACKED)),
    chunk_bytes=st.integers(8, 200),
)
def test_members_that_follow_each_other_are_read_as_one_file(
    parts: list[bytes], suffix: str, chunk_bytes: int
):
    packed = b"".join(map(PACKED[suffix], parts))
    assert content_of(packed, f"a{suffix}", chunk_bytes) == b"".join(parts)


@pytest.mark.parametrize("suffix", sorted(PACKED))
def test_a_cut_anywhere_but_between_members_is_an_error(suffix: str):
    members = [PACKED[suffix](text * 9) for text in (b"one\n", b"two\n", b"three\n")]
    packed = b"".join(members)
    whole = {len(members[0]), len(members[0]) + len(members[1])}
    for end in range(8, len(packed)):
        if end in whole:
            assert content_of(packed[:end], f"a{suffix}")
        else:
            with pytest.raises(BrokenArchive, match=r"data is cut: .* copy or download"):
                content_of(packed[:end], f"a{suffix}")


def test_the_first_bytes_decide_where_the_name_promises_nothing():
    assert content_of(gzip.compress(b"{}", mtime=0), "a.jsonl") == b"{}"
    assert content_of(zstandard.compress(b"{}"), "a.jsonl") == b"{}"
    assert content_of(SKIPPABLE_FRAME + zstandard.compress(b"{}"), "a") == b"{}"
    assert content_of(b"{}", "a.jsonl") == b"{}"
    assert content_of(b"", "a.jsonl") == b""


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.jsonl.gz", b'{"id": 1}', r"not gzip \(it begins with b'\{\"id\": 1\}'\)"),
        ("a.jsonl.GZ", b"", r"not gzip \(it is empty\)"),
        ("a.jsonl.gz", zstandard.compress(b"{}"), "not gzip"),
        ("a.jsonl.zst", gzip.compress(b"{}", mtime=0), "not zstd"),
        ("a.jsonl.zst", b"\x28\xb5", "not zstd"),
    ],
)
def test_a_name_that_breaks_its_promise_is_an_error(name: str, content: bytes, found: str):
    with pytest.raises(BrokenArchive, match=f"{found}.*rename it"):
        content_of(content, name)


def make_tar(format: int) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=format) as tar:
        member = tarfile.TarInfo("logs/a.jsonl")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"{}\n"))
    return sink.getvalue()


def make_v7_tar() -> bytes:
    """Return a tar as of before POSIX, which has no mark of its kind."""
    header = bytearray(make_tar(tarfile.USTAR_FORMAT)[:512])
    header[257:512] = bytes(255)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


OTHER_KINDS: dict[str, tuple[bytes, str, str]] = {
    "zip": (b"PK\x03\x04..", "zip", "unpack it"),
    "xlsx": (b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml", "Excel or Word", "read_excel"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Excel or Word", "read_excel"),
    "bzip2": (b"BZh91AY", "bzip2", "bunzip2"),
    "xz": (lzma.compress(b"{}"), "xz", "unxz"),
    "parquet": (b"PAR1..", "Parquet", "end in .parquet"),
    "pickle": (pickle.dumps([{"id": "a"}]), "pickle", "where you trust it, pandas: read_pickle"),
    "tar": (make_tar(tarfile.USTAR_FORMAT), "tar", "tar -xf"),
    "GNU tar": (make_tar(tarfile.GNU_FORMAT), "tar", "tar -xf"),
    "old tar": (make_v7_tar(), "tar", "tar -xf"),
}


@pytest.mark.parametrize("name", OTHER_KINDS)
@pytest.mark.parametrize("suffix", ["", *sorted(PACKED)])
def test_other_kinds_of_files_are_named_with_what_reads_them(name: str, suffix: str):
    content, kind, cure = OTHER_KINDS[name]
    packed = PACKED[suffix](content) if suffix else content
    with pytest.raises(BrokenArchive, match=f"a {kind} file.*convert it first: .*{cure}"):
        content_of(packed, f"a.jsonl{suffix}")
    with pytest.raises(BrokenArchive, match=f"a {kind} file"):
        content_of(packed, f"a.jsonl{suffix}", chunk_bytes=100)


@pytest.mark.parametrize("suffix", sorted(PACKED))
def test_damage_is_an_error_where_it_is_met(suffix: str):
    packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(bytes(range(256))))
    if suffix == ".gz":
        packed = bytearray(gzip.compress(bytes(range(256))))
    packed[100] ^= 1
    with pytest.raises(BrokenArchive, match=r"data is damaged \(.*\); copy or download"):
        content_of(bytes(packed), f"a{suffix}")


@pytest.mark.parametrize("suffix", sorted(PACKED))
def test_other_bytes_after_the_last_member_are_an_error(suffix: str):
    with pytest.raises(BrokenArchive, match="damaged"):
        content_of(PACKED[suffix](b"{}\n") + b"something else", f"a{suffix}")


def test_zero_bytes_that_pad_a_gzip_file_are_left_out():
    packed = (
        gzip.compress(b"a\n", mtime=0) + bytes(10_000) + gzip.compress(b"b\n", mtime=0) + bytes(3)
    )
    assert content_of(packed, "a.gz") == b"a\nb\n"


def test_skippable_frames_of_seekable_zstd_files_hold_no_content():
    packed = zstandard.compress(b"a\n") + SKIPPABLE_FRAME + zstandard.compress(b"b\n")
    assert content_of(packed + SKIPPABLE_FRAME, "a.zst", chunk_bytes=11) == b"a\nb\n"


def test_the_long_windows_of_public_dumps_are_read():
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = compressor.compress(b"{}\n" * 9) + compressor.flush()
    assert zstandard.get_frame_parameters(packed).window_size == 2**28
    assert content_of(packed, "a.zst") == b"{}\n" * 9


@pytest.mark.parametrize("suffix", sorted(PACKED))
def test_content_that_packs_very_well_is_not_held_at_once(suffix: str):
    def zeros() -> Iterator[bytes]:
        compressor = (
            zlib.compressobj(wbits=31)
            if suffix == ".gz"
            else zstandard.ZstdCompressor().compressobj()
        )
        for _ in range(200):
            yield compressor.compress(bytes(2**20))
        yield compressor.flush()

    packed = b"".join(zeros())
    tracemalloc.start()
    length = sum(map(len, decompressed(iter([packed]), f"a{suffix}")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert length == 200 * 2**20
    assert peak < 48 * 2**20


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_bomb_is_stopped_before_it_fills_the_disk(
    pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "FREE_BYTES", 2**20)
    bomb = pack(bytes(2**24))
    contents = decompressed(iter([bomb]), "in.jsonl")
    read: list[int] = []
    with pytest.raises(BrokenArchive, match="more than 500 times as many; if that is meant"):
        read.extend(map(len, contents))
    assert sum(read) < 2**24


@pytest.mark.parametrize("suffix", sorted(PACKED))
def test_blank_lines_without_end_are_stopped(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "FREE_LINES", 2**10)
    bomb = PACKED[suffix](b"\n" * 2**22)
    contents = decompressed(iter([bomb]), f"in.jsonl{suffix}")
    with pytest.raises(BrokenArchive, match="more than 10 for each byte; if that is meant, unpack"):
        list(contents)


def test_content_that_repeats_itself_a_hundred_times_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(archive, "FREE_BYTES", 0)
    line = random.Random(0).randbytes(2000).hex().encode() + b"\n"
    packed = zstandard.compress(line * 100)
    assert 100 * len(packed) < 2 * len(line * 100)
    assert b"".join(decompressed(iter([packed]), "in.jsonl")) == line * 100


@pytest.mark.parametrize("outer", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize(("inner", "kind"), [(gzip.compress, "gzip"), (zstandard.compress, "zstd")])
def test_a_file_that_was_compressed_twice_is_named(
    outer: Callable[[bytes], bytes], inner: Callable[[bytes], bytes], kind: str
) -> None:
    with pytest.raises(BrokenArchive, match=f"this is a {kind} file inside .*: compressed twice"):
        list(decompressed(iter([outer(inner(b"{}\n" * 9))]), "in.jsonl"))
