"""Rate, concurrency and queue limits: buckets and tickets by themselves, then a whole server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server.api.error_responses import ApiError
from server.api.limits import MAX_ACCOUNTS, RateLimiter, Subject, TokenBucket, duration, merged
from server.limits import Limits
from tests.server.api.support import BASE, STEADY, error_of
from tests.server.live import Live, live_server, slow_steps


class Clock:
    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


def subjects(**limits: int) -> list[Subject]:
    return [Subject("model", "a", Limits(**limits)), Subject("key", "k", Limits())]


# ---- parts ----


def test_a_bucket_fills_with_time() -> None:
    bucket = TokenBucket(60, 0.0)
    bucket.take(60, 0.0)
    assert bucket.level(0.0) == 0
    assert bucket.seconds_until(2, 0.0) == 2
    assert bucket.level(10.0) == 10
    assert bucket.level(1000.0) == 60


def test_an_overdrawn_bucket_pays_back_first() -> None:
    bucket = TokenBucket(60, 0.0)
    bucket.take(100, 0.0)
    assert bucket.level(30.0) == -10
    assert bucket.seconds_until(1, 30.0) == 11


def test_another_limit_forgives_nothing() -> None:
    bucket = TokenBucket(60, 0.0)
    bucket.take(50, 0.0)
    bucket.resize(600, 0.0)
    assert bucket.level(0.0) == 10
    bucket.resize(6, 0.0)
    assert bucket.level(0.0) == 6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0ms"), (0.02, "20ms"), (1.0, "1s"), (7.66, "7.66s"), (59.9999, "1m0s"), (360.0, "6m0s"), (61.5, "1m1.5s")],
)
def test_times_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_is_not_set_is_the_servers() -> None:
    own = Limits(requests_per_minute=5, max_queue=0)
    assert merged(own, Limits(1, 2, 3, 4)) == Limits(5, 2, 3, 0)


def test_requests_a_minute() -> None:
    clock = Clock()
    limiter, whose = RateLimiter(clock), subjects(requests_per_minute=2)
    for left in (1, 0):
        with limiter.request(whose) as ticket:
            ticket.admit(1, 10, 10)
            headers = ticket.headers()
            assert headers["x-ratelimit-remaining-requests"] == str(left)
    assert headers == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    clock.now += 12.5
    with (
        pytest.raises(ApiError, match="model 'a' has reached its requests per minute") as refused,
        limiter.request(whose),
    ):
        pass
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert refused.value.headers["Retry-After"] == "18"
    assert refused.value.headers["retry-after-ms"] == "17500"
    assert refused.value.headers["x-ratelimit-remaining-requests"] == "0"
    clock.now += 17.5
    with limiter.request(whose):
        pass


def test_tokens_are_reserved_and_settled() -> None:
    limiter, whose = RateLimiter(Clock()), subjects(tokens_per_minute=100)
    with ExitStack() as first:
        ticket = first.enter_context(limiter.request(whose))
        ticket.admit(1, 20, 60)
        assert ticket.headers()["x-ratelimit-remaining-tokens"] == "20"
        with limiter.request(whose) as second, pytest.raises(ApiError, match="limit 100, requested 30"):
            second.admit(1, 20, 10)
        ticket.used = 25
    with limiter.request(whose) as third:
        third.admit(1, 50, 25)
        assert third.headers()["x-ratelimit-remaining-tokens"] == "0"


def test_what_never_ran_costs_no_tokens_and_what_was_refused_no_request() -> None:
    limiter, whose = RateLimiter(Clock()), subjects(tokens_per_minute=100, requests_per_minute=3)
    with limiter.request(whose) as ticket:
        ticket.admit(1, 20, 60)  # and then the engine was not there
    with limiter.request(whose) as ticket, pytest.raises(ApiError):
        ticket.admit(1, 200, 1)
    assert ticket.headers()["x-ratelimit-remaining-tokens"] == "100"
    assert ticket.headers()["x-ratelimit-remaining-requests"] == "2"


def test_a_request_that_never_fits_is_not_to_be_repeated() -> None:
    limiter = RateLimiter(Clock())
    with limiter.request(subjects(tokens_per_minute=100)) as ticket, pytest.raises(ApiError) as refused:
        ticket.admit(1, 20, 90)
    assert refused.value.headers["x-should-retry"] == "false"
    assert "Retry-After" not in refused.value.headers


def test_who_does_not_say_how_much_has_what_is_left() -> None:
    limiter, whose = RateLimiter(Clock()), subjects(tokens_per_minute=100)
    with limiter.request(whose) as ticket:
        ticket.admit(1, 20, None)
        assert ticket.headers()["x-ratelimit-remaining-tokens"] == "0"
        ticket.used = 130
    with limiter.request(whose) as ticket, pytest.raises(ApiError, match=r"try again in 18\.6s"):
        ticket.admit(1, 1, None)


def test_sequences_at_once_and_in_the_queue() -> None:
    limiter, whose = RateLimiter(Clock()), subjects(max_concurrency=4, max_queue=2)
    with ExitStack() as running:
        first = running.enter_context(limiter.request(whose))
        first.admit(2, 1, 1)
        with limiter.request(whose) as full, pytest.raises(ApiError) as refused:
            full.admit(1, 1, 1)
        assert refused.value.code == "queue_full"
        for index in (0, 0, 1):
            first.begun(index)
        running.enter_context(limiter.request(whose)).admit(2, 1, 1)
        with limiter.request(whose) as full, pytest.raises(ApiError) as refused:
            full.admit(1, 1, 1)
        assert refused.value.code == "too_many_concurrent_requests"
        assert refused.value.headers["Retry-After"] == "1"
    assert limiter.active() == 0
    with limiter.request(whose) as ticket:
        ticket.admit(2, 1, 1)


def test_the_tighter_of_two_limits_is_told_and_other_names_are_free() -> None:
    limiter = RateLimiter(Clock())
    key = Subject("key", "k", Limits(requests_per_minute=10))
    one, other = (Subject("model", name, Limits(requests_per_minute=1)) for name in "ab")
    with limiter.request([one, key]) as ticket:
        assert ticket.headers()["x-ratelimit-limit-requests"] == "1"
    with pytest.raises(ApiError), limiter.request([one, key]):
        pass
    with limiter.request([other, key]):
        pass
    with limiter.request([Subject("model", "c", Limits()), key]) as ticket:
        assert ticket.headers()["x-ratelimit-remaining-requests"] == "7", "the refused one took nothing of the key"


def test_accounts_of_the_idle_are_forgotten() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    for number in range(MAX_ACCOUNTS + 5):
        clock.now += 61
        with limiter.request([Subject("model", f"m{number}", Limits(requests_per_minute=1))]):
            pass
    assert len(limiter._accounts) <= MAX_ACCOUNTS


# ---- a server ----


@pytest.fixture(scope="module")
def limited(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One sequence at a time; each key has limits."""
    keys: dict[str, Any] = {"key_rpm": 6, "key_tpm": 4000, "key_concurrency": 3, "key_queue": 2}
    engine = {"max_num_seqs": 1}
    with live_server(base, tmp_path_factory.mktemp("limited"), api_key="a,b,c,d,e", engine=engine, **keys) as live:
        yield live


def ask(live: Live, key: str, **body: Any) -> httpx.Response:
    with live.http(authorization=f"Bearer {key}") as http:
        wanted = {"model": BASE, "prompt": "x y z", "max_tokens": 2, "ignore_eos": True, **body}
        return http.post("/v1/completions", json=wanted)


def test_headers_and_refusals_of_requests_a_minute(limited: Live) -> None:
    for left in range(5, -1, -1):
        response = ask(limited, "a")
        assert response.status_code == 200
        assert response.headers["x-ratelimit-limit-requests"] == "6"
        assert response.headers["x-ratelimit-limit-tokens"] == "4000"
        assert int(response.headers["x-ratelimit-remaining-requests"]) in (left, left + 1)
        assert re.fullmatch(r"(\d+m)?[\d.]+m?s", response.headers["x-ratelimit-reset-requests"])
    refused = ask(limited, "a")
    error = error_of(refused, 429)
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert 1 <= int(refused.headers["retry-after"]) <= 10
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    client = openai.OpenAI(base_url=f"{limited.url}/v1", api_key="a", max_retries=0)
    with client, pytest.raises(openai.RateLimitError, match="requests per minute"):
        client.completions.create(model=BASE, prompt="x")
    assert ask(limited, "b").status_code == 200, "another key has its own"


def test_tokens_are_settled_with_what_was_used(limited: Live) -> None:
    whole = ask(limited, "c", max_tokens=1500, stop=["e"], ignore_eos=False)
    assert whole.status_code == 200
    used = whole.json()["usage"]["total_tokens"]
    with limited.http(authorization="Bearer c") as http:
        body = {"model": BASE, "prompt": "x", "max_tokens": 4, "stream": True, "ignore_eos": True}
        streamed = http.post("/v1/completions", json=body)
    assert streamed.text.endswith("data: [DONE]\n\n")
    left = int(streamed.headers["x-ratelimit-remaining-tokens"])
    assert 4000 - used - 10 <= left <= 4000 - 4
    refused = error_of(ask(limited, "c", n=2, max_tokens=2000), 429)
    assert refused["code"] == "rate_limit_exceeded"
    assert "too large" in refused["message"], "both answers count, so that a whole minute is not enough"


def test_one_key_cannot_fill_the_queue(limited: Live) -> None:
    body = {"max_tokens": 400, **STEADY}
    with ThreadPoolExecutor(3) as pool:
        with slow_steps():
            running = [pool.submit(ask, limited, "d", **body)]
            limited.wait(lambda: limited.stats.num_running == 1, "the first to run")
            limited.wait(lambda: not limited.on_loop(lambda: _queued(limited)), "its first token")
            running += [pool.submit(ask, limited, "d", **body) for _ in range(2)]
            limited.wait(lambda: limited.context.admission.active == 3, "three requests")
            refused = ask(limited, "d", max_tokens=1)
            assert error_of(refused, 429)["code"] == "too_many_concurrent_requests"
            assert refused.headers["retry-after"] == "1"
            with limited.http(authorization="Bearer e") as http:
                full = http.post("/v1/completions", json={"model": BASE, "prompt": "x", "n": 3, "max_tokens": 1})
            assert error_of(full, 429)["code"] == "queue_full", "as many wait for a key"
            assert ask(limited, "e", max_tokens=1).status_code == 200
        assert [future.result().status_code for future in running] == [200, 200, 200]
    limited.wait_idle()
    limited.wait(lambda: limited.on_loop(limited.context.limiter.active) == 0, "places to be free")


def _queued(live: Live) -> int:
    return sum(account.queued for account in live.context.limiter._accounts.values())


def test_a_client_that_leaves_frees_its_places(limited: Live) -> None:
    limited.wait(lambda: limited.on_loop(limited.context.limiter.active) == 0, "earlier requests to be gone")
    with limited.http(authorization="Bearer e") as http:
        body = {"model": BASE, "prompt": "x", "max_tokens": 1500, "stream": True, **STEADY}
        with slow_steps(), http.stream("POST", "/v1/completions", json=body) as response:
            assert response.headers["x-ratelimit-limit-tokens"] == "4000"
            lines = response.iter_lines()  # which end the request when they go
            assert next(lines)
            assert limited.on_loop(limited.context.limiter.active) == 2
    limited.wait(lambda: limited.on_loop(limited.context.limiter.active) == 0, "places to be free")


def test_names_have_limits_of_their_own(base: Path, packages: dict[str, Path], tmp_path: Path) -> None:
    adapters = [("lora", str(packages["lora"]))]
    body = {"prompt": "x", "max_tokens": 1}
    with live_server(base, tmp_path, adapters=adapters, adapter_rpm=1) as live:
        assert live.post("/v1/completions", body | {"model": "lora"}).status_code == 200
        assert "model 'lora'" in error_of(live.post("/v1/completions", body | {"model": "lora@1"}), 429)["message"]
        assert live.post("/v1/completions", body | {"model": BASE}).status_code == 200
        error_of(live.post("/v1/completions", body | {"model": BASE}), 429)


# ---- time limits ----


def test_a_request_that_waits_too_long_is_not_begun(limited: Live) -> None:
    limited.wait_idle()
    with ThreadPoolExecutor(1) as pool:
        with slow_steps():
            running = pool.submit(ask, limited, "b", max_tokens=400, **STEADY)
            limited.wait(lambda: limited.stats.num_running == 1, "the first to run")
            late = ask(limited, "b", timeout=0.05)
            error = error_of(late, 408)
            assert error["code"] == "request_timeout"
            assert "before its first token" in error["message"]
            assert late.headers["retry-after"]
            limited.wait(lambda: limited.context.admission.active <= 1, "nothing of it to be left")
        assert running.result().status_code == 200


@pytest.mark.parametrize("streamed", [True, False])
def test_a_request_that_runs_too_long_is_ended(server: Live, streamed: bool) -> None:
    body = {"model": BASE, "prompt": "x", "max_tokens": 1900, "stream": streamed, **STEADY}
    with slow_steps(), server.http(**{"x-request-timeout": "0.3"}) as http:
        response = http.post("/v1/completions", json=body | {"timeout": 60})
    if streamed:
        assert response.status_code == 200
        *_, last, done = [line for line in response.text.splitlines() if line]
        assert '"request_timeout"' in last
        assert done == "data: [DONE]"
    else:
        assert "tokens of output" in error_of(response, 408)["message"]
    server.wait_idle()


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "nan", "inf"])
def test_a_time_limit_is_a_number_above_zero(server: Live, seconds: str) -> None:
    with server.http(**{"x-request-timeout": seconds}) as http:
        response = http.post("/v1/completions", json={"model": BASE, "prompt": "x"})
    assert error_of(response, 400)["param"] == "x-request-timeout"
    assert error_of(server.post("/v1/completions", {"prompt": "x", "timeout": 0}), 400)["param"] == "timeout"
