"""Answers while the engine is lost under them: whole ones and untouched streams come all the same, once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.api.support import BASE, error_of, events
from tests.server.engine.ipc.fragile import POISONS, Fragile, build_fragile
from tests.server.engine.ipc.local_client import RestartingLocalClient
from tests.server.live import Live, live_server, slow_steps

PATH = "/v1/completions"
LONG = {"max_tokens": 300, "ignore_eos": True, "speculation": False}


@pytest.fixture(scope="module")
def server(base: Path, packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server whose engine comes back, with room for four sequences at once."""
    with live_server(
        base,
        tmp_path_factory.mktemp("data"),
        adapters=[(name, str(packages[name])) for name in ("lora", "lora-2", "prefix")],
        engine={"max_num_seqs": 4},
        make_engine=partial(RestartingLocalClient, build=build_fragile),
    ) as live:
        yield live
        live.wait_idle()
        assert live.on_loop(lambda: [live.context.registry.running(key) for key in live.context.registry._leases]) == []


def told(response: httpx.Response) -> tuple[Any, Any]:
    assert response.status_code == 200, response.text
    body = response.json()
    return body["choices"], body["usage"]


def counter(server: Live, name: str, **labels: str) -> float:
    return server.context.metrics.registry.get_sample_value(f"hotswap_{name}", {"model": BASE, **labels}) or 0


def test_everyone_gets_one_whole_answer_or_one_error(server: Live) -> None:
    wholes: list[dict[str, Any]] = [
        {"model": "lora", "prompt": ["who?", "what?"], "logprobs": 2, "temperature": 0, **LONG},
        {"model": BASE, "prompt": "who?", "n": 2, "seed": 7, "temperature": 1.3, "prompt_logprobs": 1, **LONG},
    ]
    stream = {"model": "prefix", "prompt": "who?", "temperature": 0, "stream_options": {"include_usage": True}, **LONG}
    expected = [told(server.post(PATH, ask)) for ask in wholes]
    expected_stream = events(server, PATH, stream)
    before = {name: counter(server, name) for name in ("resumed_sequences_total", "engine_restarts_total")}
    with ExitStack() as stack:
        http, pool = stack.enter_context(server.http()), stack.enter_context(ThreadPoolExecutor(8))
        with slow_steps():
            begun = stack.enter_context(http.stream("POST", PATH, json={**stream, "stream": True}))
            lines = begun.iter_lines()
            seen = [next(lines)]
            answers = [pool.submit(server.post, PATH, ask) for ask in wholes]
            server.wait(lambda: server.stats.num_running == 4 and server.stats.num_waiting, "a full engine")
            untouched = pool.submit(events, server, PATH, stream)
            server.wait(lambda: server.stats.num_waiting == 2, "one more to wait")
            Fragile.doomed.set()
            server.wait(lambda: not Fragile.doomed.is_set(), "the engine to end")
        assert [told(answer.result()) for answer in answers] == expected
        seen += [line for line in lines if line]
        assert texts(untouched.result()) == texts(expected_stream)
        assert untouched.result()[-1]["usage"] == expected_stream[-1]["usage"]
    assert seen.pop() == "data: [DONE]"
    error = json.loads(seen.pop().removeprefix("data: "))["error"]
    assert error["code"] == "engine_unavailable"
    assert not any('"error"' in line for line in seen), "one error, and it is the end"
    assert counter(server, "engine_restarts_total") == before["engine_restarts_total"] + 1
    assert counter(server, "resumed_sequences_total") == before["resumed_sequences_total"] + 5
    for stage in ("serving", "first_token"):
        assert counter(server, "engine_restart_seconds_count", stage=stage) == 1
    of_prefix = {"adapter": "prefix", "version": "1"}
    assert counter(server, "errors_total", type="engine_unavailable", status="503", **of_prefix) == 1
    assert counter(server, "generation_tokens_total", adapter="lora", version="1") == 4 * 300, "none is counted twice"


def texts(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


def test_a_combination_is_made_again_by_the_next_engine(server: Live) -> None:
    ask = {"model": "lora:0.5+lora-2:-0.3", "prompt": "who?", "temperature": 0, **LONG}
    expected, restarts = told(server.post(PATH, ask)), counter(server, "engine_restarts_total")
    with ThreadPoolExecutor(1) as pool:
        with slow_steps():
            answer = pool.submit(server.post, PATH, ask)
            server.wait(lambda: server.stats.num_running == 1, "the request to run")
            Fragile.doomed.set()
            server.wait(lambda: not Fragile.doomed.is_set(), "the engine to end")
        assert told(answer.result()) == expected
    assert counter(server, "engine_restarts_total") == restarts + 1
    server.wait_idle()
    server.on_loop(server.context.residency.check_integrity)


def test_what_ends_every_engine_is_refused_and_not_to_be_repeated(server: Live) -> None:
    bystander = {"model": "lora", "prompt": "who?", "temperature": 0, **LONG}
    expected = told(server.post(PATH, bystander))
    with ThreadPoolExecutor(2) as pool:
        with slow_steps():
            beside = pool.submit(server.post, PATH, bystander)
            server.wait(lambda: server.stats.num_running == 1, "the other request to run")
            refused = server.post(PATH, {"model": BASE, "prompt": [5, next(iter(POISONS))], **LONG})
        assert told(beside.result()) == expected
    assert error_of(refused, 503)["code"] == "request_ends_engine"
    assert refused.headers["x-should-retry"] == "false"
