"""Rules that end canaries, and steps that let them grow."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest

from tests.server.api.support import error_of
from tests.server.api.traffic.calls import ask, look, patch, settled, states, traffic, url
from tests.server.live import Live


def feed(
    live: Live, name: str, version: int, count: int, *, ttft: float = 0.1, itl: float = 0.01, errors: int = 0
) -> None:
    """Let the figures have seen requests."""
    key, figures = live.context.registry.version(name, version).key, live.context.traffic.figures

    def tell() -> None:
        for _ in range(errors):
            figures.failed(key)
        for _ in range(count - errors):
            figures.served(key, ttft, itl)

    live.on_loop(tell)


@pytest.mark.parametrize(
    ("rules", "canary"),
    [
        ({"max_error_rate": 0.1}, {"errors": 3}),
        ({"max_error_rate_above_live": 0.1}, {"errors": 3}),
        ({"max_ttft_p50_ratio": 1.5}, {"ttft": 0.2}),
        ({"max_ttft_p95_ratio": 1.5}, {"ttft": 0.2}),
        ({"max_itl_p50_ratio": 1.5}, {"itl": 0.02}),
        ({"max_itl_p95_ratio": 1.5}, {"itl": 0.02}),
    ],
)
def test_each_rule_aborts(
    live: Live, admin: httpx.Client, name: str, *, rules: dict[str, float], canary: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    patch(admin, name, canary={"version": 2, "weight": 0.5, "rules": {**rules, "min_requests": 20}})
    feed(live, name, 1, 20)
    feed(live, name, 2, 19, **canary)
    look(live)
    (rule,) = rules
    found = traffic(admin, name)["canaries"]
    assert found[0]["verdicts"][0]["value"] is None, "too few to judge by"
    feed(live, name, 2, 1, ttft=canary.get("ttft", 0.1), itl=canary.get("itl", 0.01))
    caplog.set_level("INFO", "server.audit")
    look(live)
    found = traffic(admin, name)
    assert found["canaries"] == []
    assert (found["ended"]["outcome"], found["ended"]["automatic"]) == ("aborted", True)
    assert rule in found["ended"]["reason"]
    assert states(admin, name) == {1: "live", 2: "candidate"}
    told = [record.__dict__["fields"] for record in caplog.records if record.name == "server.audit"]
    assert [(line["action"], line["version"], rule in line["reason"]) for line in told] == [("abort", 2, True)]
    assert any(record.levelname == "WARNING" and "aborted" in record.message for record in caplog.records)


def test_a_sound_canary_stays(live: Live, admin: httpx.Client, name: str) -> None:
    rules = {
        "max_error_rate": 0.1, "max_ttft_p95_ratio": 1.5, "max_itl_p95_ratio": 1.5, "min_requests": 20,
        "gates": ["f1>=live-0.1"],
    }  # fmt: skip
    patch(admin, name, canary={"version": 2, "weight": 0.5, "rules": rules})
    feed(live, name, 1, 50, errors=40)
    feed(live, name, 2, 50, errors=5)
    look(live)
    found = traffic(admin, name)["canaries"][0]
    assert [verdict["breached"] for verdict in found["verdicts"]] == [False] * 4
    assert found["rules"]["gates"] == ["f1>=live-0.1"]


def test_disagreement_aborts(live: Live, admin: httpx.Client, name: str) -> None:
    rules = {"min_agreement": 0.9, "min_exact": 0.9, "min_requests": 2}
    patch(admin, name, canary={"version": 2, "weight": 0.0, "rules": rules}, shadow={"version": 2, "weight": 1.0})
    assert "shadow" in error_of(admin.patch(url(name), json={"shadow": None}))["message"], "the rules need it"
    with live.http() as http:
        for number in (1, 2):
            ask(http, name)
            settled(live, admin, name, number)
            if number == 1:
                look(live)
                assert traffic(admin, name)["canaries"]
    look(live)
    found = traffic(admin, name)
    assert (found["canaries"], found["shadow"]) == ([], None)
    assert "min_agreement" in found["ended"]["reason"]


def test_an_evaluators_scores_abort(live: Live, admin: httpx.Client, name: str) -> None:
    def score(version: int | None, **scores: float) -> dict[str, Any]:
        response = admin.post(url(name, "scores"), json={"version": version, "scores": scores})
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    score(1, f1=0.80)
    patch(admin, name, canary={"version": 2, "weight": 0.1, "rules": {"gates": ["f1>=live-0.01", "perplexity<=9"]}})
    look(live)
    assert traffic(admin, name)["canaries"]
    assert score(None, f1=0.79, perplexity=8.0)["scores"] == {"f1": 0.79, "perplexity": 8.0}
    look(live)
    assert traffic(admin, name)["canaries"], "both hold"
    assert score(2, perplexity=9.5)["scores"] == {"f1": 0.79, "perplexity": 9.5}
    look(live)
    assert "perplexity<=9 is 9.5" in traffic(admin, name)["ended"]["reason"]
    headers = {"content-type": "application/json"}
    for scores in (None, {}, {"f 1": 1}, {"f1": "?"}, {"f1": None}):
        wrong = json.dumps({"scores": scores})
        error_of(admin.post(url(name, "scores"), content=wrong, headers=headers))
    error_of(admin.post(url(name, "scores"), json={"version": 9, "scores": {"f1": 1}}), 404)
    error_of(admin.post(url(name, "scores"), json={"scores": {"f1": 1}}), 409)


def test_steps_lead_to_promotion_while_nothing_is_breached(live: Live, admin: httpx.Client, name: str) -> None:
    rules = {"max_error_rate": 0.1, "min_requests": 5}
    patch(admin, name, canary={"version": 2, "weight": 0.1, "rules": rules, "steps": [0.5, 1.0], "step_requests": 10})
    look(live)
    feed(live, name, 2, 9)
    look(live)
    assert traffic(admin, name)["canaries"][0]["weight"] == 0.1
    feed(live, name, 2, 1)
    look(live)
    found = traffic(admin, name)["canaries"][0]
    assert (found["weight"], found["steps"]) == (0.5, [1.0])
    look(live)
    feed(live, name, 2, 10)
    look(live)
    found = traffic(admin, name)
    assert (found["canaries"], found["ended"]["outcome"]) == ([], "promoted")
    assert states(admin, name)[2] == "live"


def test_the_watch_runs_by_itself(live: Live, admin: httpx.Client, name: str) -> None:
    patch(admin, name, canary={"version": 2, "weight": 0.5, "rules": {"max_error_rate": 0.1, "min_requests": 1}})
    feed(live, name, 2, 1, errors=1)
    begun = time.monotonic()
    live.wait(lambda: not traffic(admin, name)["canaries"], "the abort")
    assert time.monotonic() - begun < 10
