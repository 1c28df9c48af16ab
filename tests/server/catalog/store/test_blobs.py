from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from server.catalog.store.blobs import BlobStore
from server.errors import StoreError


@pytest.mark.parametrize("remote", [False, True])
def test_content_is_kept_once_and_found_by_its_digest(tmp_path: Path, remote: bool) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    url = f"file://{tmp_path}/elsewhere" if remote else ""
    blobs = BlobStore(tmp_path / "files", url)
    digest = hashlib.sha256(b"content").hexdigest()
    assert blobs.put(source) == blobs.put(source) == (digest, 7)
    assert blobs.path(digest).read_bytes() == b"content"
    source.unlink()
    assert [path.name for path in (tmp_path / "files").iterdir()] == [digest]
    if remote:
        other = BlobStore(tmp_path / "other", url)  # of another server: it fetches a copy
        assert other.path(digest).read_bytes() == b"content"
    blobs.remove(digest)
    blobs.remove(digest)
    with pytest.raises(StoreError, match="is gone from"):
        blobs.path(digest)
    assert list((tmp_path / "files").iterdir()) == []


def test_what_a_crash_left_goes_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "abc.part").write_bytes(b"half")
    BlobStore(tmp_path)
    assert list(tmp_path.iterdir()) == []
