"""What is read as JSON, and how much of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api import body
from server.api.body import FIELD_COST, count_values
from tests.server.api.support import BASE, error_of
from tests.server.live import Live, live_server

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
ROUTES = [CHAT, TEXT, "/tokenize", "/v1/tokenize", "/detokenize", "/v1/detokenize"]


# ---- media types ----


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "media",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "application/jsonp"],
)
def test_only_json_is_taken(server: Live, path: str, media: str) -> None:
    with server.http() as http:
        content, headers = json.dumps({"model": BASE, "prompt": "x"}), {"content-type": media}
        error = error_of(http.post(path, content=content, headers=headers), 415)
    assert error["code"] == "unsupported_media_type"
    assert "content-type: application/json" in error["message"]


def test_a_body_without_a_type_is_taken_from_programs_not_from_pages(server: Live) -> None:
    with server.http() as http:
        content = json.dumps({"model": BASE, "prompt": "x", "max_tokens": 1})
        assert http.post(TEXT, content=content).status_code == 200
        assert http.post(TEXT, content=content, headers={"origin": "http://evil.example"}).status_code in (403, 415)


@pytest.mark.parametrize("media", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"])
def test_what_is_json_by_another_name(server: Live, media: str) -> None:
    with server.http() as http:
        content = json.dumps({"model": BASE, "prompt": "x", "max_tokens": 1})
        assert http.post(TEXT, content=content, headers={"content-type": media}).status_code == 200


@pytest.mark.parametrize(("method", "path"), [("PATCH", ""), ("POST", "/rollback")])
def test_only_json_changes_adapters(server: Live, method: str, path: str) -> None:
    with server.http() as http:
        url, headers = f"/v1/adapters/lora{path}", {"content-type": "text/plain"}
        error_of(http.request(method, url, content=b'{"version": 1}', headers=headers), 415)


# ---- counting ----

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(['"', "\\", '\\"', ',,[[{{::"', "\\\\"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def _cost(value: Any) -> int:
    if isinstance(value, dict):
        return FIELD_COST * (1 + len(value)) + max(len(value) - 1, 0) + sum(map(_cost, value.values()))
    if isinstance(value, list):
        return FIELD_COST + max(len(value) - 1, 0) + sum(map(_cost, value))
    return 0


@given(JSON_VALUES, st.integers(1, 9), st.booleans())
async def test_values_are_counted_whatever_the_strings_and_slices(value: Any, size: int, plain: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body, "SLICE", size)
        assert await count_values(json.dumps(value, ensure_ascii=plain).encode()) == _cost(value)


# ---- limits ----


@pytest.fixture(scope="module")
def strict(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server whose limits are small."""
    with live_server(
        base, tmp_path_factory.mktemp("strict"), max_json_values=1000, max_messages=4, max_prompt_chars=200
    ) as live:
        yield live


def test_values_beyond_the_limit_are_refused_by_its_name(strict: Live) -> None:
    assert strict.post("/detokenize", {"tokens": [5] * 900}).status_code == 200
    for path, content in (
        ("/detokenize", {"tokens": [5] * 1100}),
        (TEXT, {"model": BASE, "prompt": [[5]] * 300}),
        (CHAT, {"model": BASE, "messages": [{}] * 300}),
        (CHAT, {"model": BASE, "messages": [{**HELLO[0], "x": {str(i): i for i in range(300)}}]}),
        (CHAT, {"model": BASE, "messages": HELLO, "logit_bias": {str(i): 1 for i in range(300)}}),
    ):
        error = error_of(strict.post(path, content))
        assert error["code"] == "body_too_complex"
        assert "1000 values" in error["message"]
        assert "--max-json-values" in error["message"]


def test_a_text_may_look_like_many_values(strict: Live) -> None:
    text = 'so, [he] said: {"yes"},\\ ' * 60
    response = strict.post(TEXT, {"model": BASE, "prompt": text, "max_tokens": 1})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
def test_too_long_a_conversation(strict: Live, path: str) -> None:
    def refused(**fields: Any) -> dict[str, Any]:
        return error_of(strict.post(path, {"model": BASE, "messages": HELLO, **fields}))

    assert strict.post(path, {"model": BASE, "messages": HELLO * 4, "max_tokens": 1}).status_code == 200
    many = refused(messages=HELLO * 5)
    assert (many["param"], many["code"]) == ("messages", "array_above_max_length")
    assert "may have 4 (--max-messages)" in many["message"]
    for fields in (
        {"messages": [{"role": "user", "content": "x" * 201}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 100}] * 2}]},
        {"messages": [{"role": "user", "content": "x", "extra": {"deep": ["x" * 201]}}]},
        {"messages": [{"role": "user", "content": "x", "x" * 201: 1}]},
        {"chat_template_kwargs": {"x": "x" * 201}},
    ):
        long = refused(**fields)
        assert (long["param"], long["code"]) == ("messages", "string_above_max_length")
        assert "may hold 200 (--max-prompt-chars)" in long["message"]


def test_too_long_a_text_to_tokenise(strict: Live) -> None:
    assert strict.post("/tokenize", {"prompt": "x" * 200}).json()["count"] == 200
    error = error_of(strict.post("/tokenize", {"prompt": "x" * 201}))
    assert (error["param"], error["code"]) == ("prompt", "string_above_max_length")
    assert "--max-prompt-chars" in error["message"]


def _conversation(count: int) -> dict[str, Any]:
    parts = [{"type": "text", "text": "so, [he] said: {yes}"}]
    return {"model": BASE, "messages": [{"role": "user", "content": parts}] * count}


LARGE: dict[str, tuple[str, Callable[[], dict[str, Any]], str]] = {
    "a context of 128k token ids": (TEXT, lambda: {"model": BASE, "prompt": [5] * 131_072}, "maximum context length"),
    "4000 messages of parts": (CHAT, lambda: _conversation(4000), "maximum context length"),
    "a megabyte of prose": (TEXT, lambda: {"model": BASE, "prompt": "well, yes, " * 90_000}, "maximum context length"),
    "256 prompts of 900 ids": (TEXT, lambda: {"model": BASE, "prompt": [[5] * 900] * 256, "n": 2}, "512 sequences"),
}


@pytest.mark.parametrize("case", list(LARGE))
def test_what_people_send_to_larger_bases_is_only_too_long_for_this_one(server: Live, case: str) -> None:
    path, make, words = LARGE[case]
    assert words in error_of(server.post(path, make()))["message"]


def test_256_prompts(server: Live) -> None:
    body = {"model": BASE, "prompt": ["so, well, " * 9] * 256, "max_tokens": 1, "temperature": 0}
    assert len(server.post(TEXT, body).json()["choices"]) == 256


MONSTERS: dict[str, tuple[bytes, str | None]] = {
    "deep": (b"[" * 6_000_000, "invalid_json"),
    "less deep": (b"[" * 60_000 + b"]" * 60_000, "invalid_json"),
    "integer": (b'{"model": "tiny", "prompt": "x", "seed": ' + b"9" * 6_000_000 + b"}", None),
    "empty texts": (b'{"prompt": [' + b'"",' * 2_000_000, "body_too_complex"),
    "empty objects": (b'{"prompt": [' + b"{}," * 2_000_000, "body_too_complex"),
    "quotes": (b'{"model": "tiny", "prompt": ' + b'"' * 6_000_000, "invalid_json"),
    "spaces": (b" " * 6_000_000, "invalid_json"),
}


@pytest.mark.parametrize("name", list(MONSTERS))
def test_monsters(server: Live, name: str) -> None:
    content, code = MONSTERS[name]
    with server.http() as http:
        error = error_of(http.post(TEXT, content=content, headers={"content-type": "application/json"}))
    assert code in (None, error["code"])


def test_a_fraction_of_a_million_digits(server: Live) -> None:
    content = b'{"model": "tiny", "prompt": "x", "max_tokens": 1, "temperature": 0.' + b"9" * 1_000_000 + b"}"
    with server.http() as http:
        assert http.post(TEXT, content=content, headers={"content-type": "application/json"}).status_code == 200
