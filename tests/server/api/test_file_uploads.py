"""Files that come in parts, with the official client."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from server.catalog.files import FileRecord, Purpose
from server.catalog.uploads import MAX_PENDING
from server.errors import InvalidRequestError
from server.files.library import new_record, with_content
from tests.server.api.support import error_of
from tests.server.live import Live, live_server

ROW = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}).encode()
ROWS = b"\n".join([ROW] * 40)
LIMITS: dict[str, Any] = {"max_file_mb": 1.0, "max_files_gb": 0.002}
ROOT = "root-of-uploads"


@pytest.fixture(autouse=True)
def _nothing_left(client: openai.OpenAI, server: Live) -> Iterator[None]:
    """Others have the same server."""
    yield
    for file in client.files.list():
        client.files.delete(file.id)
    set_expiry(server, "", 1.0)
    expire(server)
    assert content_of(server) == []


def content_of(live: Live) -> list[Path]:
    return list((live.context.lifecycle.store.root / "files").iterdir())


def expire(live: Live) -> None:
    asyncio.run_coroutine_threadsafe(live.context.files.expire(), live.loop).result(10)


def set_expiry(live: Live, id: str, expires: float) -> None:
    """Of one upload, or of all."""
    where = f" WHERE id = '{id}'" if id else ""
    with live.context.lifecycle.catalog.database.writing() as connection:
        connection.exec_driver_sql(f"UPDATE uploads SET expires = {expires}{where}")


def begun(client: openai.OpenAI, content: bytes = ROWS, **changes: Any) -> Any:
    asked = {"bytes": len(content), "filename": "r.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
    return client.uploads.create(**{**asked, **changes})


def add(client: openai.OpenAI, id: str, *contents: bytes) -> list[str]:
    return [client.uploads.parts.create(id, data=content).id for content in contents]


def refused(call: Callable[[], Any], status: int = 400) -> Any:
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    assert caught.value.status_code == status
    return caught.value


def test_parts_become_a_file_in_the_order_that_is_asked(client: openai.OpenAI, server: Live) -> None:
    upload = begun(client, expires_after={"anchor": "created_at", "seconds": 7200})
    assert (upload.object, upload.status, upload.bytes, upload.file) == ("upload", "pending", len(ROWS), None)
    assert upload.expires_at == upload.created_at + 3600
    assert client.files.list().data == []
    pieces = [ROWS[start : start + 500] for start in range(0, len(ROWS), 500)]
    with ThreadPoolExecutor(4) as pool:  # at once, the last one first
        made = list(pool.map(lambda piece: client.uploads.parts.create(upload.id, data=piece), reversed(pieces)))
    assert {(part.object, part.upload_id) for part in made} == {("upload.part", upload.id)}
    ids = [part.id for part in reversed(made)]
    wrong = refused(lambda: client.uploads.complete(upload.id, part_ids=ids[::-1], md5=md5(ROWS)))
    assert (wrong.param, wrong.code) == ("md5", "wrong_md5")
    done = client.uploads.complete(upload.id, part_ids=ids, md5=md5(ROWS).upper())
    assert done.status == "completed"
    assert done.file == client.files.list().data[0]
    assert (done.file.filename, done.file.bytes, done.file.purpose) == ("r.jsonl", len(ROWS), "fine-tune")
    assert done.file.expires_at == done.file.created_at + 7200
    assert client.files.content(done.file.id).read() == ROWS
    assert len(content_of(server)) == 1  # of the parts nothing is left
    again = refused(lambda: client.uploads.complete(upload.id, part_ids=ids))
    assert again.code == "upload_completed"
    assert done.file.id in again.message
    assert refused(lambda: add(client, upload.id, b"x")).code == "upload_completed"
    assert refused(lambda: client.uploads.cancel(upload.id)).code == "upload_completed"


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_the_client_cuts_files_itself(client: openai.OpenAI, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROWS)
    done = client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="fine-tune", part_size=1000, md5=md5(ROWS)
    )
    assert done.file is not None
    assert done.file.filename == "rows.jsonl"
    assert client.files.content(done.file.id).read() == ROWS
    other = client.uploads.upload_file_chunked(
        file=b"abc", filename="a.txt", bytes=3, mime_type="text/plain", purpose="user_data"
    )
    assert other.file is not None
    assert client.files.content(other.file.id).read() == b"abc"


def test_parts_that_do_not_make_up_the_file_leave_it_pending(client: openai.OpenAI) -> None:
    bad = ROW + b"\n{\n"
    upload = begun(client, bad)
    first, second = add(client, upload.id, bad[:5], bad[5:])
    more = refused(lambda: add(client, upload.id, b"x"))
    assert (more.param, more.code) == ("data", "wrong_size")
    assert f"would hold {len(bad) + 1} bytes" in more.message
    again = add(client, upload.id, bad[:5])  # as of a client that saw no answer the first time
    complete = client.uploads.complete
    for ids, said in (
        ([first], f"5 bytes, and the upload was created for {len(bad)}"),
        ([first, second, *again], "was created for"),
        ([first, first], "stands there 2 times"),
        ([first, "part_none"], "no part 'part_none'"),
    ):
        error = refused(lambda ids=ids: complete(upload.id, part_ids=ids))  # type: ignore[misc]
        assert error.param == "part_ids"
        assert said in error.message
    assert "line 2: it is not valid JSON" in refused(lambda: complete(upload.id, part_ids=[first, second])).message
    assert refused(lambda: complete(upload.id, part_ids=[first], md5="z" * 32)).param == "md5"
    assert refused(lambda: complete(upload.id, part_ids=[])).param == "part_ids"
    assert refused(lambda: complete(upload.id, part_ids=[*again, second])).message.count("line 2") == 1  # still pending


def test_uploads_end_when_cancelled_or_after_an_hour(client: openai.OpenAI, server: Live) -> None:
    upload, other = begun(client), begun(client)
    add(client, upload.id, ROWS)
    part = add(client, other.id, ROWS)
    cancelled = client.uploads.cancel(upload.id)
    assert (cancelled.status, cancelled.file) == ("cancelled", None)
    assert len(content_of(server)) == 1  # equal content, and another still has it
    assert refused(lambda: client.uploads.cancel(upload.id)).code == "upload_cancelled"
    assert refused(lambda: add(client, upload.id, b"x")).code == "upload_cancelled"
    set_expiry(server, other.id, time.time() - 1)
    assert refused(lambda: add(client, other.id, b"x")).code == "upload_expired"
    assert refused(lambda: client.uploads.complete(other.id, part_ids=part)).code == "upload_expired"
    expire(server)
    assert content_of(server) == []
    set_expiry(server, other.id, time.time() - 90_000)
    expire(server)
    assert refused(lambda: client.uploads.cancel(other.id), 404).code == "upload_not_found"


def test_wrong_uploads_are_refused(client: openai.OpenAI, server: Live) -> None:
    for changes, param in (
        ({"bytes": 0}, "bytes"),
        ({"bytes": 2**40}, "bytes"),
        ({"purpose": "batch_output"}, "purpose"),
        ({"filename": ""}, "filename"),
        ({"expires_after": {"anchor": "created_at", "seconds": 5}}, "expires_after.seconds"),
    ):
        assert refused(lambda changes=changes: begun(client, **changes)).param == param  # type: ignore[misc]
    assert refused(lambda: add(client, "upload_none", b"x"), 404).code == "upload_not_found"
    upload = begun(client)
    assert refused(lambda: add(client, upload.id, b"")).param == "data"
    assert refused(lambda: add(client, upload.id, ROWS + b"x")).param == "data"
    with server.http() as http:
        assert error_of(http.post(f"/v1/uploads/{upload.id}/parts", json={"data": "x"}), 415)
        assert error_of(http.post(f"/v1/uploads/{upload.id}/parts", data={"data": "x"}, files={}), 415)
        assert error_of(http.post(f"/v1/uploads/{upload.id}/complete", json={}))["param"] == "part_ids"
    record = server.context.uploads._table.get(upload.id)
    assert record is not None
    for i in range(MAX_PENDING - 1):
        server.context.uploads._table.add(msgspec.structs.replace(record, id=f"upload_{i}"))
    assert refused(lambda: begun(client), 429).code == "rate_limit_exceeded"


def test_parts_outlive_the_server_and_count_as_files_do(base: Path, tmp_path: Path) -> None:
    with live_server(base, tmp_path, admin_key=ROOT, **LIMITS) as live, client_of(live) as root:
        large = begun(root, bytes(2**20 - 1), purpose="user_data")
        ids = add(root, large.id, bytes(10_000), bytes(2**20 - 10_001))
        assert refused(lambda: begun(root, bytes(2**20 + 1))).param == "bytes"
        assert refused(lambda: add(root, large.id, bytes(2**20 + 2**16)), 413).code == "body_too_large"
        root.files.create(file=("a", b"a" * 900_000), purpose="user_data")
        assert refused(lambda: begun(root, bytes(100_000)), 507).code == "storage_budget_exceeded"
        assert refused(lambda: root.files.create(file=("b", b"b" * 100_000), purpose="user_data"), 507)
        with live.http(Authorization=f"Bearer {ROOT}") as http:
            key = http.post("/v1/keys", json={"name": "n", "scopes": ["inference"]}).json()["key"]
        with client_of(live, key) as stranger:
            assert refused(lambda: stranger.uploads.complete(large.id, part_ids=ids), 404).code == "upload_not_found"
    with live_server(base, tmp_path, admin_key=ROOT, **LIMITS) as live, client_of(live) as root:
        done = root.uploads.complete(large.id, part_ids=ids)  # its parts give their room to it
        assert done.file is not None
        assert root.files.content(done.file.id).read() == bytes(2**20 - 1)
        assert len(content_of(live)) == 2


def client_of(live: Live, key: str = ROOT) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key=key, max_retries=0)


def test_an_upload_that_ends_while_it_is_put_together_is_no_file(
    client: openai.OpenAI, server: Live, tmp_path: Path
) -> None:
    upload = begun(client)
    client.uploads.cancel(upload.id)
    path = tmp_path / "joined"
    path.write_bytes(ROWS)
    file = new_record("", "f", Purpose.USER_DATA, None)

    def write(digest: str, nbytes: int) -> FileRecord:
        return server.context.uploads._table.complete(upload.id, with_content(file, digest, nbytes))

    with pytest.raises(InvalidRequestError, match="was cancelled"):
        asyncio.run_coroutine_threadsafe(server.context.files.keep(path, write), server.loop).result(10)
    assert client.files.list().data == []
    assert content_of(server) == []
