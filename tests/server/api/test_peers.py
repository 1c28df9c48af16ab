"""What clients and platforms of other servers ask besides OpenAI's paths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from server.settings import ServerConfig
from tests.server.api.support import BASE, STEADY, error_of
from tests.server.live import Live, live_server, slow_steps

PAGE = "https://app.example"


@pytest.fixture(scope="module")
def peer(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with a prefix, CORS for some methods and headers, and the tokenizer's configuration told."""
    cors: dict[str, Any] = {"cors_method": "post", "cors_header": ["x-team"], "cors_credentials": True}
    settings = {"root_path": "/llm", "tokenizer_info": True, "cors_origin": PAGE, **cors}
    with live_server(base, tmp_path_factory.mktemp("peer"), **settings) as live:
        yield live


def test_paths_without_v1(server: Live, peer: Live) -> None:
    message = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    assert server.post("/chat/completions", message).json()["object"] == "chat.completion"
    assert server.post("/completions/", {"prompt": "x", "max_tokens": 1}).json()["object"] == "text_completion"
    with server.http() as http:
        assert http.get("/models").json() == http.get("/v1/models").json()
        assert http.get("/models/lora").json()["id"] == "lora"
        assert http.get("/adapters/lora").json() == http.get("/v1/adapters/lora").json()
        assert http.head("/models").status_code == 200
        assert error_of(http.get("/completions"), 405)["message"].endswith("it takes POST")
        error_of(http.get("/model"), 404)
    with peer.http() as http:
        assert http.get("/llm/models").json()["data"][0]["id"] == http.get("/models").json()["data"][0]["id"] == BASE


def test_uploads_without_v1_have_the_limit_of_uploads(base: Path, tmp_path: Path) -> None:
    with live_server(base, tmp_path, max_body_mb=0.001) as live, live.http() as http:
        assert "archive" in error_of(http.put("/adapters/x", files={"f": b"x" * 5000}))["message"]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_ping(server: Live, method: str) -> None:
    with server.http() as http:
        assert http.request(method, "/ping").json() == {"status": "ok"}


def test_load_counts_the_requests_that_are_answered(server: Live) -> None:
    with server.http() as http:
        assert http.get("/load").json() == {"server_load": 0}
        body = {"prompt": "x", "max_tokens": 1500, "n": 3, "stream": True, **STEADY}
        with slow_steps(), http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()  # which end the request when they go
            assert next(lines)
            with server.http() as other:
                assert other.get("/load").json() == {"server_load": 1}
        server.wait(lambda: server.context.admission.requests == 0, "the request to be over")


def test_the_tokenizers_configuration(server: Live, peer: Live, base: Path) -> None:
    with server.http() as http:
        assert "--tokenizer-info" in error_of(http.get("/tokenizer_info"), 404)["message"]
    with peer.http() as http:
        told = http.get("/tokenizer_info").json()
    own = AutoTokenizer.from_pretrained(base)
    assert told["tokenizer_class"] == type(own).__name__
    assert told["chat_template"] == own.chat_template
    assert told["eos_token"] == own.eos_token
    assert told["added_tokens_decoder"][str(own.eos_token_id)]["special"] is True
    assert told["model_max_length"] >= peer.context.engine.info.max_model_len
    assert not any(str(base) in str(value) for value in told.values())


def test_what_an_allowed_page_may_send(peer: Live) -> None:
    def asks(method: str, header: str) -> dict[str, str]:
        return {"Origin": PAGE, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": header}

    with peer.http() as http:
        allowed = http.options("/v1/chat/completions", headers=asks("POST", "x-team"))
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-credentials"] == "true"
        assert allowed.headers["access-control-allow-methods"] == "POST"
        for method, header in (("DELETE", "x-team"), ("POST", "x-other")):
            refused = http.options("/v1/models", headers=asks(method, header))
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "origin_not_allowed")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cors_method": "BREW"}, "wants a method"),
        ({"cors_header": "a b"}, "wants the name of a header"),
        ({"cors_origin": "*", "api_key": "sk", "cors_credentials": True}, "name the origins"),
    ],
)
def test_cors_that_cannot_be(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ServerConfig.model_validate(settings)
