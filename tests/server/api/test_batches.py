"""Batches, from a file of requests to a file of answers, with the official client."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from server.batches.answers import Answers
from server.batches.batch import OPEN, Batch, BatchStatus, batch_of, cancelled, with_batch
from server.catalog.jobs import JobRow
from server.errors import InvalidRequestError
from tests.server.api.support import STEADY
from tests.server.live import Live, slow_steps, wait_until

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 3,
    "temperature": 0,
}


@pytest.fixture(autouse=True)
def _no_files_left(client: openai.OpenAI) -> Iterator[None]:
    """Others have the same server."""
    yield
    for file in client.files.list():
        client.files.delete(file.id)


def request(id: str, **changes: Any) -> dict[str, Any]:
    return {"custom_id": id, "method": "POST", "url": CHAT, "body": {**ASKED, **changes}}


def begun(client: openai.OpenAI, *requests: dict[str, Any], endpoint: Any = CHAT) -> Any:
    content = b"".join(json.dumps(one).encode() + b"\n" for one in requests)
    file = client.files.create(file=("b.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"k": "v"})


def ended(client: openai.OpenAI, id: str) -> Any:
    wait_until(lambda: client.batches.retrieve(id).status not in OPEN, "the batch to end")
    return client.batches.retrieve(id)


def lines(client: openai.OpenAI, file: str | None) -> dict[str, Any]:
    assert file is not None
    found = [json.loads(line) for line in client.files.content(file).text.splitlines()]
    return {line["custom_id"]: line for line in found}


def test_each_request_gets_the_answer_that_it_would_get_alone(client: openai.OpenAI) -> None:
    batch = begun(client, request("a"), request("b", model="lora"), request("c", model="none"), request("d", n=-1))
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"k": "v"})
    batch = ended(client, batch.id)
    assert batch.status == "completed"
    assert batch.completed_at is not None
    assert batch.request_counts.model_dump() == {"total": 4, "completed": 2, "failed": 2}
    answers = lines(client, batch.output_file_id)
    for id, model in (("a", "tiny"), ("b", "lora")):
        alone = client.chat.completions.create(**{**ASKED, "model": model})
        response = answers[id]["response"]
        assert response["status_code"] == 200
        assert response["request_id"]
        assert response["body"]["choices"][0]["message"]["content"] == alone.choices[0].message.content
    errors = lines(client, batch.error_file_id)
    assert {id: line["response"]["status_code"] for id, line in errors.items()} == {"c": 404, "d": 400}
    assert errors["c"]["response"]["body"]["error"]["code"] == "model_not_found"
    assert [found.id for found in client.batches.list(limit=1)][:1] == [batch.id]
    assert client.batches.list(limit=0).has_more


def test_a_wrong_file_fails_with_its_lines(client: openai.OpenAI) -> None:
    other = {**request("b"), "url": "/v1/completions"}
    batch = ended(client, begun(client, request("a"), other, request("c", stream=True)).id)
    assert batch.status == "failed"
    assert [(error.line, error.message.partition(":")[0]) for error in batch.errors.data] == [
        (2, "url"),
        (3, "body.stream"),
    ]
    assert batch.output_file_id is None


def test_a_batch_can_be_cancelled(client: openai.OpenAI, server: Live) -> None:
    with slow_steps():
        batch = begun(client, *(request(str(i), max_tokens=400, **STEADY) for i in range(60)))
        wait_until(lambda: client.batches.retrieve(batch.id).status == "in_progress", "the batch to begin")
        assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = ended(client, batch.id)
    assert batch.status == "cancelled"
    assert batch.request_counts.completed < 60
    with pytest.raises(openai.BadRequestError):
        client.batches.cancel(batch.id)
    server.wait_idle()


def test_what_is_no_batch_is_refused(client: openai.OpenAI) -> None:
    other = client.files.create(file=("a.txt", b"x"), purpose="user_data").id
    for file, endpoint, param in (
        (other, CHAT, "input_file_id"),
        ("file-none", CHAT, "input_file_id"),
        (other, "/v1/moderations", "endpoint"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.batches.create(input_file_id=file, endpoint=endpoint, completion_window="24h")  # type: ignore[arg-type]
        assert refused.value.param == param
    for call in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            call("batch_none")


def test_answers_outlive_a_crash_but_for_a_line_that_was_torn(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "b")
    answers.add("1", 200, {"x": 1}, "r")
    answers.add("2", 400, {"error": {}}, "r")
    with answers.output.open("ab") as file:
        file.write(b'{"custom_id": "3", "resp')
    again = Answers(tmp_path / "b")
    assert (again.completed, again.failed) == ({"1"}, {"2"})
    again.add_error("3", "batch_expired", "m")
    last = Answers(tmp_path / "b")
    assert [last.has(id) for id in "1234"] == [True, True, True, False]


def test_only_open_batches_are_cancelled() -> None:
    batch = Batch(endpoint=CHAT, input_file="f", window="24h", expires=time.time())
    row = with_batch(JobRow(id="b", kind="batch", owner="", status="validating", created=0.0, record=""), batch)
    stopping = cancelled(row)
    assert stopping.status == BatchStatus.CANCELLING
    assert cancelled(stopping) == stopping
    assert "cancelling" in batch_of(stopping).moments
    with pytest.raises(InvalidRequestError, match="has ended already"):
        cancelled(with_batch(row, batch, BatchStatus.EXPIRED))
