"""Asking through the openai client, of a tiny real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from hotswap.demo.asking import Answer, ChatQuestion, Stream, StreamingClient, open_client, traffic


def chunk(text: str, finish: str | None = None) -> bytes:
    top = [{"token": text, "logprob": -0.5, "bytes": None}, {"token": "z", "logprob": -1.5, "bytes": None}]
    content = [{"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": top}] if text else []
    body = {
        "id": "1",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "m",
        "system_fingerprint": "fp_1:m@3",
        "choices": [
            {"index": 0, "delta": {"content": text}, "finish_reason": finish, "logprobs": {"content": content}}
        ],
    }
    return f"data: {json.dumps(body)}\n\n".encode()


@asynccontextmanager
async def server() -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """Says "hello" in two tokens to model ``m``; ``breaks`` and ``cut`` end badly; others do not exist."""
    bodies: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        bodies.append(body)
        if body["model"] not in ("m", "breaks", "cut"):
            error = {"message": "no such model", "type": "invalid_request_error", "param": "model", "code": None}
            return web.json_response({"error": error}, status=404)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "x-hotswap-adapter": "m@3"})
        await response.prepare(request)
        await response.write(chunk("hel"))
        if body["model"] == "breaks":
            await response.write(b'data: {"error": {"message": "engine died"}}\n\n')
        elif body["model"] == "m":
            await response.write(chunk("lo") + chunk("", "stop") + b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with TestServer(app) as running:
        yield str(running.make_url("")).rstrip("/"), bodies


async def ask(model: str, salt: str = "") -> tuple[Answer, dict[str, Any], int]:
    firsts: list[None] = []
    async with server() as (url, bodies), open_client(url, "k") as client:
        question = ChatQuestion(model, "hi", 5, ignore_eos=True)
        answer = await StreamingClient(client, salt).ask(question, on_first=lambda: firsts.append(None))
    return answer, bodies[-1], len(firsts)


async def test_a_whole_answer_with_everything_the_report_needs() -> None:
    answer, body, firsts = await ask("m", salt="s")
    assert (answer.text, answer.finish_reason, answer.error, firsts) == ("hello", "stop", None, 1)
    assert (answer.version, answer.fingerprints) == ("m@3", {"fp_1:m@3"})
    assert [(token.text, token.logprob) for token in answer.tokens] == [("hel", -0.5), ("lo", -0.5)]
    assert answer.tokens[0].top == {"hel": -0.5, "z": -1.5}
    assert len(answer.stamps) == 2
    assert (body["temperature"], body["max_tokens"], body["ignore_eos"], body["cache_salt"]) == (0, 5, True, "s")


async def test_what_goes_wrong_is_in_the_answer_and_not_tried_again() -> None:
    for model, words in (("gone", "NotFoundError"), ("breaks", "engine died"), ("cut", "without a finish_reason")):
        async with server() as (url, bodies), open_client(url, "k") as client:
            answer = await StreamingClient(client).ask(ChatQuestion(model, "hi", 5))
        assert words in str(answer.error)
        assert len(bodies) == 1


async def test_traffic_goes_on_through_the_block_and_every_request_gets_its_answer() -> None:
    answers: list[Answer] = []
    questions = [ChatQuestion("m", "a", 5), ChatQuestion("m", "b", 5)]
    async with server() as (url, bodies), open_client(url, "k") as client:
        async with traffic(StreamingClient(client), Stream(questions, 2, answers)), asyncio.timeout(30):
            while len(answers) < 6:
                await asyncio.sleep(0)
        assert len(answers) == len(bodies)
    assert {answer.error for answer in answers} == {None}
    assert {answer.question.prompt for answer in answers} == {"a", "b"}
