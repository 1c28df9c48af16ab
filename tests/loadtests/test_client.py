from __future__ import annotations

import pytest

from loadtests.client import Outcome, Target, ask, list_models, open_session
from loadtests.workloads import Call
from tests.loadtests.tiny_server import MODELS, tiny_server


async def outcome_of(model: str, **options: object) -> Outcome:
    async with tiny_server() as (url, _):
        target = Target(url=url, max_tokens=3, **options)  # type: ignore[arg-type]
        async with open_session(target) as session:
            return await ask(session, target, Call(0, model, "hello"))


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
async def test_a_complete_answer(endpoint: str) -> None:
    outcome = await outcome_of("good", endpoint=endpoint)
    assert (outcome.error, outcome.prompt_tokens, outcome.completion_tokens) == (None, 7, 6)
    assert len(outcome.stamps) == 3  # the empty first delta of a chat is not text
    assert outcome.start <= outcome.stamps[0] <= outcome.stamps[-1] <= outcome.end


async def test_no_usage_leaves_the_counts_open() -> None:
    outcome = await outcome_of("no usage")
    assert (outcome.error, outcome.completion_tokens, len(outcome.stamps)) == (None, None, 3)


@pytest.mark.parametrize(
    ("model", "error", "detail"),
    [
        ("missing", "http_404", "no such model"),
        ("busy", "http_429", "queue full"),
        ("garbage", "bad_response", "not JSON"),
        ("breaks", "stream_error", "engine died"),
        ("cut", "cut_off", "without [DONE]"),
    ],
)
async def test_each_failure_has_its_type(model: str, error: str, detail: str) -> None:
    outcome = await outcome_of(model)
    assert outcome.error == error
    assert detail in outcome.detail


async def test_a_timeout_is_an_outcome() -> None:
    outcome = await outcome_of("hangs", timeout_s=0.1)
    assert outcome.error == "timeout"


async def test_nobody_listening_is_an_outcome(unused_tcp_port: int) -> None:
    target = Target(url=f"http://127.0.0.1:{unused_tcp_port}")
    async with open_session(target) as session:
        outcome = await ask(session, target, Call(0, "good", "hello"))
    assert outcome.error == "connection"


async def test_a_model_has_fields_of_its_own() -> None:
    async with tiny_server() as (url, seen):
        target = Target(url=url, max_tokens=2, fields={"good": {"lora": [{"id": 3}]}})
        async with open_session(target) as session:
            await ask(session, target, Call(0, "good", "hello"))
            await ask(session, target, Call(1, "no usage", "hello"))
    assert [body.get("lora") for body in seen.bodies] == [[{"id": 3}], None]


async def test_what_is_sent() -> None:
    async with tiny_server() as (url, seen):
        target = Target(url=url + "/v1/", api_key="sk-1", max_tokens=2, ignore_eos=True)
        async with open_session(target) as session:
            assert await list_models(session, target) == MODELS
            await ask(session, target, Call(0, "good", "hello"))
    assert seen.headers[0]["Authorization"] == "Bearer sk-1"
    assert seen.bodies == [
        {
            "model": "good",
            "prompt": "hello",
            "max_tokens": 2,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]
