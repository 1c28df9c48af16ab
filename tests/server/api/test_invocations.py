"""One path for all kinds of requests."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.api.support import error_of
from tests.server.live import Live

MESSAGES = [{"role": "user", "content": "who?"}]
STEADY = {"max_tokens": 4, "temperature": 0, "ignore_eos": True}
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": MESSAGES, **STEADY}),
    ("/v1/completions", {"prompt": ["who?", "what?"], **STEADY}),
    ("/v1/embeddings", {"input": "who?"}),
    ("/v1/embeddings", {"messages": MESSAGES, "encoding_format": "float"}),
    ("/v1/pooling", {"input": "who?", "task": "token_embed"}),
    ("/v1/rerank", {"query": "who?", "documents": ["me", "you"]}),
    ("/v1/score", {"text_1": "who?", "text_2": ["me", "you"]}),
    ("/v1/score", {"queries": "who?", "documents": ["me", "you"]}),
]
OF_THIS_ONE = ("id", "created", "usage")


@pytest.mark.parametrize(("path", "body"), KINDS)
@pytest.mark.parametrize("model", ["tiny", "lora"])
def test_answers_are_those_of_the_own_path(server: Live, path: str, body: dict[str, Any], model: str) -> None:
    asked = {"model": model, **body}
    own, invoked = server.post(path, asked), server.post("/invocations", asked)
    assert (own.status_code, invoked.status_code) == (200, 200), invoked.text
    one, other = ({k: v for k, v in answer.json().items() if k not in OF_THIS_ONE} for answer in (own, invoked))
    assert one == other
    assert own.headers.get("x-hotswap-adapter") == invoked.headers.get("x-hotswap-adapter")


def test_streams(server: Live) -> None:
    answer = server.post("/invocations", {"prompt": "who?", "stream": True, **STEADY})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("body", [{}, {"model": "tiny"}, [], "x", {"prompt": 5}, {"messages": []}, {"input": ""}])
def test_what_is_no_request(server: Live, body: Any) -> None:
    error_of(server.post("/invocations", body))


def test_no_such_adapter(server: Live) -> None:
    assert error_of(server.post("/invocations", {"model": "x", "input": "a"}), 404)["code"] == "model_not_found"
