from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from server.catalog.files import FileRecord, Purpose
from tests.server.api.support import error_of
from tests.server.live import Live, live_server

ROW = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
ROWS = (json.dumps(ROW) + "\n").encode() * 3
ROOT = "root-of-files"


@pytest.fixture(scope="module")
def live(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    limits: dict[str, Any] = {"max_file_mb": 1.0, "max_files_gb": 0.002}
    with live_server(base, tmp_path_factory.mktemp("files"), admin_key=ROOT, **limits) as made:
        yield made


@pytest.fixture(scope="module")
def root(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=ROOT, max_retries=0) as made:
        yield made


def key(live: Live, *scopes: str) -> str:
    with live.http(Authorization=f"Bearer {ROOT}") as http:
        made: str = http.post("/v1/keys", json={"name": "n", "scopes": list(scopes)}).json()["key"]
        return made


def test_a_file_lives_from_upload_to_deletion(client: openai.OpenAI, server: Live) -> None:
    made = client.files.create(file=("../träin.jsonl", ROWS), purpose="fine-tune")
    assert (made.object, made.filename, made.bytes, made.purpose) == ("file", "träin.jsonl", len(ROWS), "fine-tune")
    assert made.id.startswith("file-")
    assert made.status == "processed"
    assert abs(made.created_at - time.time()) < 60
    assert made.expires_at is None
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == ROWS
    assert made in client.files.list(purpose="fine-tune").data
    again = client.files.create(file=("b.jsonl", ROWS), purpose="fine-tune")  # equal content is kept once
    assert client.files.delete(made.id).deleted
    assert client.files.content(again.id).read() == ROWS
    folder = server.context.lifecycle.store.root / "files"
    assert len(list(folder.iterdir())) == 1
    client.files.delete(again.id)
    assert list(folder.iterdir()) == []
    with pytest.raises(openai.NotFoundError) as gone:
        client.files.retrieve(made.id)
    assert gone.value.code == "file_not_found"


def test_lists_are_paged_in_both_orders(client: openai.OpenAI) -> None:
    made = [client.files.create(file=(f"{i}.txt", b"x"), purpose="user_data") for i in range(3)]
    pages = client.files.list(purpose="user_data", limit=2, order="asc")
    assert [file.id for file in pages.data] == [file.id for file in made[:2]]
    assert pages.has_more
    assert [file.id for file in pages] == [file.id for file in made]  # which follows the pages
    assert [file.id for file in client.files.list(purpose="user_data")] == [file.id for file in reversed(made)]
    for file in made:
        client.files.delete(file.id)
    assert client.files.list(purpose="user_data").data == []


def test_files_expire_when_their_owner_says_so(client: openai.OpenAI, server: Live) -> None:
    made = client.files.create(
        file=("a.txt", b"soon"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at == made.created_at + 3600
    request = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": {}}
    batch = client.files.create(file=("b.jsonl", json.dumps(request).encode()), purpose="batch")
    assert batch.expires_at == batch.created_at + 30 * 86400
    client.files.delete(batch.id)
    files = server.context.files
    old = {"id": "file-old", "owner": "", "filename": "f", "purpose": Purpose.USER_DATA, "sha256": "0" * 64}
    files._table.add(msgspec.convert({**old, "nbytes": 1, "created": 1.0, "expires": 2.0}, FileRecord))
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve("file-old")
    asyncio.run_coroutine_threadsafe(files.expire(), server.loop).result(10)
    assert files._table.get("file-old") is None
    client.files.delete(made.id)


@pytest.mark.parametrize(
    ("form", "param", "said"),
    [
        ({"purpose": "fine-tune"}, "file", "line 2: it is not valid JSON"),
        ({}, "purpose", "is missing; it must be fine-tune"),
        ({"purpose": "batch_output"}, "purpose", "must be fine-tune"),
        ({"purpose": "user_data", "expires_after[seconds]": "5"}, "expires_after.seconds", "must be 3600 to 2592000"),
        ({"purpose": "user_data", "expires_after[anchor]": "x"}, "expires_after.anchor", "must be created_at"),
    ],
)
def test_wrong_uploads_are_refused(server: Live, form: dict[str, str], param: str, said: str) -> None:
    with server.http() as http:
        error = error_of(http.post("/v1/files", data=form, files={"file": ("a", json.dumps(ROW) + "\n{")}))
    assert error["param"] == param
    assert said in error["message"]
    assert client_files(server) == []


def client_files(server: Live) -> list[str]:
    with server.http() as http:
        return [file["id"] for file in http.get("/v1/files").json()["data"]]


def test_wrong_questions_are_refused(server: Live) -> None:
    with server.http() as http:
        assert "file" in error_of(http.post("/v1/files", data={"purpose": "batch"}, files={}), 415)["message"]
        two = [("file", ("a", b"1")), ("file", ("b", b"2"))]
        assert error_of(http.post("/v1/files", data={"purpose": "user_data"}, files=two))["param"] == "file"
        assert error_of(http.get("/v1/files", params={"limit": -1}))["param"] == "limit"
        assert error_of(http.get("/v1/files", params={"purpose": "x"}))["param"] == "purpose"
        assert error_of(http.get("/v1/files", params={"after": "file-none"}), 404)["param"] == "file_id"
        assert error_of(http.get("/v1/files/nope/content"), 404)["code"] == "file_not_found"
        assert error_of(http.delete("/v1/files/nope"), 404)["code"] == "file_not_found"


def test_too_large_files_and_too_many_are_refused(live: Live, root: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        root.files.create(file=("a.txt", b"x" * (2**20 + 1)), purpose="user_data")
    assert refused.value.status_code == 413
    kept = [root.files.create(file=("a.txt", bytes([i]) * 900_000), purpose="user_data") for i in range(2)]
    with pytest.raises(openai.APIStatusError) as full:
        root.files.create(file=("a.txt", b"z" * 900_000), purpose="user_data")
    assert (full.value.status_code, full.value.code) == (507, "storage_budget_exceeded")
    for file in kept:
        root.files.delete(file.id)


def test_files_belong_to_the_key_that_made_them(live: Live, root: openai.OpenAI) -> None:
    one, other = (
        openai.OpenAI(base_url=f"{live.url}/v1", api_key=key(live, scope), max_retries=0)
        for scope in ("inference", "fine-tuning")
    )
    made = one.files.create(file=("a.txt", b"mine"), purpose="user_data")
    for call in (other.files.retrieve, other.files.delete, other.files.content):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    assert other.files.list().data == []
    assert [file.id for file in one.files.list()] == [made.id]
    assert root.files.retrieve(made.id) == made  # an admin of everything sees everything
    with live.http(Authorization=f"Bearer {key(live, 'read-only')}") as http:
        assert http.get("/v1/files").status_code == 403
    one.files.delete(made.id)
    one.close()
    other.close()


def test_uploads_that_break_off_leave_nothing(server: Live) -> None:
    def body() -> Iterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\nabc'

    with server.http() as http:
        response = http.post("/v1/files", content=body(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert error_of(response)["code"] == "upload_incomplete"
    folder = server.context.lifecycle.store.root / "quarantine"
    assert list(folder.glob("*/upload-*")) == []
