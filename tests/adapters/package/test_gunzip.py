"""Our reader of gzip streams against the standard library's."""

from __future__ import annotations

import gzip
import io
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import PackageError
from adapters.package.gunzip import Gunzip

parts = st.lists(st.binary(max_size=300) | st.just(b"") | st.just(bytes(5000)), min_size=1, max_size=6)
counts = st.lists(st.integers(1, 700), min_size=1, max_size=5)


def pack(listed: list[bytes], padding: int) -> bytes:
    return b"".join(gzip.compress(part) + bytes(padding) for part in listed)


def read_all(data: bytes, sizes: list[int]) -> bytes:
    reader, out, turn = Gunzip(io.BytesIO(data), len(data)), [], 0
    while chunk := reader.read(sizes[turn % len(sizes)]):
        out.append(chunk)
        turn += 1
        assert reader.peek(3) == reader.peek(3)
    return b"".join(out)


@settings(deadline=None)
@given(listed=parts, sizes=counts, padding=st.integers(0, 3))
def test_it_reads_what_gzip_reads(listed: list[bytes], sizes: list[int], padding: int) -> None:
    data = pack(listed, padding)
    assert read_all(data, sizes) == gzip.decompress(data)


@settings(deadline=None)
@given(listed=parts, cut=st.integers(1, 20), changed=st.integers(0, 200))
def test_damage_is_told(listed: list[bytes], cut: int, changed: int) -> None:
    data = bytearray(pack(listed, 0))
    data[changed % len(data)] ^= 0x15
    for damaged in (bytes(data), pack(listed, 0)[:-cut]):
        try:
            whole = read_all(damaged, [512])
        except (EOFError, zlib.error):
            continue
        assert whole == gzip.decompress(damaged), "only what changes nothing may pass"


def test_long_runs_of_zeros_between_members() -> None:
    data = gzip.compress(b"a") + bytes(200_000) + gzip.compress(b"b") + bytes(200_000)
    assert read_all(data, [10]) == b"ab"


def test_members_beyond_what_is_packed_in_them() -> None:
    data = gzip.compress(b"") * 65
    with pytest.raises(PackageError, match="more than 64 members"):
        read_all(data, [1])
