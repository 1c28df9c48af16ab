"""Chat completions that are kept, with the official client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.server.api.support import BASE, error_of
from tests.server.live import Live

SAID: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "x"}]}]
KEPT: Any = {"model": BASE, "messages": SAID, "max_tokens": 2, "store": True}


def test_a_stored_completion_is_found_changed_and_deleted(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(**KEPT, metadata={"a": "b"})
    found = client.chat.completions.retrieve(made.id)
    assert found.choices == made.choices
    assert found.metadata == {"a": "b"}
    changed = client.chat.completions.update(made.id, metadata={"c": "d"})
    assert changed.metadata == {"c": "d"}
    assert client.chat.completions.retrieve(made.id).model_dump() == changed.model_dump()
    messages = list(client.chat.completions.messages.list(made.id, limit=1))
    assert [(one.id, one.content) for one in messages] == [(f"{made.id}-0", "Be brief."), (f"{made.id}-1", None)]
    assert messages[1].content_parts[0].text == "x"  # type: ignore[index,union-attr]
    assert client.chat.completions.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.chat.completions.retrieve(made.id)


def test_what_is_not_stored_is_not_found(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(**{**KEPT, "store": False})
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(made.id)


def test_a_stream_is_stored_as_a_whole(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**KEPT, stream=True, n=2, temperature=0))
    found = client.chat.completions.retrieve(chunks[0].id)
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert [choice.message.content for choice in found.choices] == texts
    assert found.usage is not None
    assert found.usage.completion_tokens == 4 or any(choice.finish_reason == "stop" for choice in found.choices)


def test_lists_by_model_and_metadata_page_by_page(client: openai.OpenAI) -> None:
    made = [client.chat.completions.create(**KEPT, metadata={"run": "paging", "number": str(n)}).id for n in range(3)]
    none = client.chat.completions.list(metadata={"run": "paging"}, limit=0)
    assert (none.data, none.has_more) == ([], True)
    listed = client.chat.completions.list(metadata={"run": "paging"}, limit=2)
    assert [one.id for one in listed] == made
    newest = client.chat.completions.list(metadata={"run": "paging"}, order="desc", model=BASE, limit=1)
    assert newest.data[0].id == made[-1]
    assert newest.has_more
    assert not client.chat.completions.list(metadata={"run": "paging"}, model="lora").data
    assert [one.id for one in client.chat.completions.list(metadata={"number": "1", "run": "paging"})] == made[1:2]


def test_says_what_is_wrong(server: Live) -> None:
    body = {**KEPT, "metadata": {"a": 1}}
    assert error_of(server.post("/v1/chat/completions", body))["param"] == "metadata"
    assert server.post("/v1/chat/completions", {**body, "store": False}).status_code == 200
    large = [{"role": "user", "content": "x", "number": 2**70}]
    made = server.post("/v1/chat/completions", {**KEPT, "messages": large}).json()
    with server.http() as http:
        (told,) = http.get(f"/v1/chat/completions/{made['id']}/messages").json()["data"]
        assert told["number"] == 2**70
        error_of(http.get("/v1/chat/completions/%00"), 404)
        assert http.get("/v1/chat/completions", params={"model": "\0"}).json()["data"] == []
