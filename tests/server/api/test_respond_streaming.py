from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.api.support import BASE, STEADY, events
from tests.server.live import Live, live_server, slow_steps

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def chat(**extra: Any) -> dict[str, Any]:
    return {"model": BASE, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, "seed": 5, **extra}


def test_chat_chunks(server: Live) -> None:
    chunks = events(server, CHAT, chat(n=2, ignore_eos=True))
    for key in ("id", "created", "model", "object", "system_fingerprint"):
        assert len({chunk[key] for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert "usage" not in chunks[0]
    for index in (0, 1):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["length"]
        assert own[-1]["delta"]["content"]  # the last text says why it is the last


@pytest.mark.parametrize("model", [BASE, "lora", "prefix"])
def test_the_stream_says_what_the_whole_answer_says(server: Live, model: str) -> None:
    body = chat(model=model, n=3, max_tokens=40, temperature=1.5)
    whole = server.post(CHAT, body).json()
    chunks = events(server, CHAT, {**body, "stream_options": {"include_usage": True}})
    for choice in whole["choices"]:
        own = [c["choices"][0] for c in chunks if c["choices"] and c["choices"][0]["index"] == choice["index"]]
        assert "".join(c["delta"].get("content", "") for c in own) == choice["message"]["content"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
    assert chunks[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


def test_usage_comes_last_and_only_when_asked_for(server: Live) -> None:
    chunks = events(server, CHAT, chat(stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    usage = chunks[-1]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_continuous_usage_grows(server: Live) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(server, TEXT, {"model": BASE, "prompt": "a", "max_tokens": 6, "stream_options": options,
                                   "logit_bias": {"72": 100}, "speculation": False})  # fmt: skip
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == [1, 2, 3, 4, 5, 6, 6]


def test_the_role_counts_no_tokens(server: Live) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(server, CHAT, chat(stream_options=options, n=2, max_tokens=4, ignore_eos=True))
    for index in range(2):
        own = [c for c in chunks if c["choices"] and c["choices"][0]["index"] == index]
        assert own[0]["choices"][0]["delta"]["role"] == "assistant"
        usage = own[0]["usage"]
        assert (usage["completion_tokens"], usage["total_tokens"]) == (0, usage["prompt_tokens"])
        assert own[-1]["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("include", [False, None])
def test_no_usage_at_all_unless_included(server: Live, include: bool | None) -> None:
    options = {"include_usage": include, "continuous_usage_stats": True}
    for path, body in ((CHAT, chat()), (TEXT, {"model": BASE, "prompt": "a", "max_tokens": 2})):
        assert all("usage" not in chunk for chunk in events(server, path, {**body, "stream_options": options}))


def test_completion_chunks_with_echo_and_logprobs(server: Live) -> None:
    body = {"model": "lora", "prompt": ["äb", "c"], "max_tokens": 10, "echo": True, "logprobs": 2, "seed": 2, "n": 2}
    whole = server.post(TEXT, body).json()
    chunks = events(server, TEXT, body)
    for choice in whole["choices"]:
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(c["text"] for c in own) == choice["text"]
        for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [item for c in own for item in c["logprobs"][key]] == choice["logprobs"][key]
        assert sum(c["finish_reason"] is not None for c in own) == 1


def test_chat_logprobs_in_chunks(server: Live) -> None:
    body = chat(logprobs=True, top_logprobs=1, max_tokens=8)
    whole = server.post(CHAT, body).json()["choices"][0]["logprobs"]["content"]
    chunks = events(server, CHAT, body)
    streamed = [item for c in chunks for item in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == whole


def test_a_stop_string_never_shows_even_in_part(server: Live) -> None:
    body = chat(max_tokens=40, logit_bias=dict.fromkeys(map(str, range(97, 120)), 20))
    text = server.post(CHAT, body).json()["choices"][0]["message"]["content"]
    stop = text[12:17]
    chunks = events(server, CHAT, {**body, "stop": [stop]})
    streamed = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert streamed == text[: text.index(stop)]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_characters_of_several_tokens_come_whole(server: Live) -> None:
    ids = server.post("/tokenize", {"model": BASE, "prompt": "€"}).json()["tokens"]
    body = {"model": BASE, "prompt": "€", "max_tokens": 40, "n": 32, "seed": 4, "temperature": 2}
    body["logit_bias"] = {str(token): 60 for token in ids}
    whole = {choice["index"]: choice["text"] for choice in server.post(TEXT, body).json()["choices"]}
    assert any("€" in text for text in whole.values())
    streamed = dict.fromkeys(whole, "")
    for chunk in events(server, TEXT, body):
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert streamed == whole


def test_mistakes_get_a_status_before_the_stream(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}], stream=True)
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=BASE, prompt=[5] * 99_999, stream=True)


def test_the_official_client_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="prefix",
        messages=[{"role": "user", "content": "x"}],
        stream=True,
        max_tokens=5,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    assert stream.response.headers["x-hotswap-adapter"] == "prefix@1"
    chunks = list(stream)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5


async def test_the_official_async_client_streams(server: Live) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(model="lora", prompt="x", max_tokens=5, stream=True)
        reasons = [chunk.choices[0].finish_reason async for chunk in stream]
    assert reasons[-1] in ("length", "stop")


def test_removal_by_force_ends_a_stream_with_an_error_event(
    server: Live, packages: dict[str, Any], client: openai.OpenAI
) -> None:
    asyncio.run_coroutine_threadsafe(
        server.context.lifecycle.install_copy("doomed", packages["lora-2"]), server.loop
    ).result(30)
    with slow_steps():
        stream = client.completions.create(
            model="doomed", prompt="x", max_tokens=1900, stream=True, extra_body={**STEADY, "logit_bias": {"72": 100}}
        )
        next(iter(stream))
        with server.http() as http:
            response = http.delete("/v1/adapters/doomed", params={"mode": "force"})
            assert response.status_code == 200
        with pytest.raises(openai.APIError, match="doomed@1 was removed"):
            list(stream)
    server.wait_idle()


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_stream_options_need_a_stream(server: Live, path: str) -> None:
    body = chat(stream_options={"include_usage": True}, prompt="x")
    response: httpx.Response = server.post(path, body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "stream_options"


@pytest.fixture(scope="module")
def waiting(base: Path, packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server that computes one sequence at a time and says soon that it still works."""
    settings: dict[str, Any] = {"engine": {"max_num_seqs": 1}, "stream_comment_seconds": 0.05}
    adapters = [("lora", str(packages["lora"]))]
    with live_server(base, tmp_path_factory.mktemp("waiting"), adapters=adapters, **settings) as live:
        yield live


def test_headers_come_at_once_and_comments_while_waiting(waiting: Live) -> None:
    long = {"model": BASE, "prompt": "x", "max_tokens": 1900, "stream": True, **STEADY}
    short = {"model": "lora", "prompt": "x", "max_tokens": 3, "logit_bias": {"72": 100}, "stream": True}
    with slow_steps(), waiting.http() as http, http.stream("POST", TEXT, json=long) as running:
        tokens = running.iter_lines()
        next(tokens)
        with waiting.http() as other, other.stream("POST", TEXT, json=short) as queued:
            assert waiting.stats.num_running == 1, "the first one still runs"
            assert queued.headers["x-hotswap-adapter"] == "lora@1"
            lines = queued.iter_lines()
            assert next(lines) == ": still working"
            running.close()  # its place is free
            rest = [line for line in lines if line and not line.startswith(":")]
    assert len(rest) == 4
    assert rest[-1] == "data: [DONE]"
    waiting.wait_idle()


def test_the_official_client_passes_over_comments(waiting: Live) -> None:
    body = {"model": BASE, "prompt": "x", "max_tokens": 50, **STEADY}
    with (
        openai.OpenAI(base_url=f"{waiting.url}/v1", api_key="none", max_retries=0) as client,
        slow_steps(),
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(waiting.post, TEXT, body)
        waiting.wait(lambda: waiting.stats.num_running == 1, "the first one to run")
        stream = client.completions.create(model="lora", prompt="x", max_tokens=3, stream=True, logit_bias={"72": 100})
        assert len(list(stream)) == 3
        assert running.result().status_code == 200


def test_what_is_refused_without_the_engine_has_a_status(waiting: Live) -> None:
    for change, status in (({"model": "nobody"}, 404), ({"max_tokens": 5000}, 400), ({"n": 129}, 400)):
        body = {"model": BASE, "prompt": "x", "stream": True}
        assert waiting.post(TEXT, body | change).status_code == status


def test_what_fails_later_is_an_error_event(waiting: Live, packages: dict[str, Path]) -> None:
    adding = waiting.context.lifecycle.install_copy("later", packages["lora-2"])
    asyncio.run_coroutine_threadsafe(adding, waiting.loop).result(30)
    long = {"model": BASE, "prompt": "x", "max_tokens": 1900, "stream": True, **STEADY}
    with slow_steps(), waiting.http() as http, http.stream("POST", TEXT, json=long) as running:
        tokens = running.iter_lines()
        next(tokens)
        with waiting.http() as other, other.stream("POST", TEXT, json={**long, "model": "later"}) as queued:
            assert queued.status_code == 200
            with waiting.http() as admin:
                assert admin.delete("/v1/adapters/later", params={"mode": "force"}).status_code == 200
            lines = [line for line in queued.iter_lines() if line.startswith("data:")]
    assert "later@1 was removed" in lines[0]
    assert lines[1:] == ["data: [DONE]"]
    waiting.wait_idle()
