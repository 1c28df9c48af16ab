from __future__ import annotations

import pytest

from loadtests.client import Outcome
from loadtests.stats import gaps_together, percentiles_ms, summarize


def answer(model: str, start: float, stamps: list[float], tokens: int | None = None) -> Outcome:
    return Outcome(model, start, end=stamps[-1] + 0.5, stamps=stamps, prompt_tokens=10, completion_tokens=tokens)


def failure(model: str, error: str, detail: str) -> Outcome:
    return Outcome(model, 0.0, end=1.0, stamps=[0.1], error=error, detail=detail)


def test_percentiles_of_known_values() -> None:
    got = percentiles_ms([i / 1000 for i in range(101)])  # 0 to 100 ms
    assert got == {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "mean": 50.0}


def test_percentiles_interpolate() -> None:
    assert percentiles_ms([0.010, 0.020])["p90"] == pytest.approx(19.0)


def test_no_values_give_none_not_zero() -> None:
    assert percentiles_ms([]) == {"p50": None, "p90": None, "p95": None, "p99": None, "mean": None}


def test_one_run_by_hand() -> None:
    outcomes = [
        answer("a", 0.0, [0.1, 0.2, 0.4], tokens=5),  # ttft 100, gaps 100 200, tpot 300/4, e2e 900
        answer("b", 1.0, [1.3, 1.5]),  # no usage: 2 tokens; ttft 300, gap 200, tpot 200, e2e 1000
        failure("a", "http_429", "full"),
        failure("a", "http_429", "still full"),
        failure("b", "timeout", "slow"),
    ]
    run = summarize(outcomes)
    assert (run["requests"], run["ok"], run["errors"]) == (5, 2, {"http_429": 2, "timeout": 1})
    assert run["error_examples"] == {"http_429": "full", "timeout": "slow"}
    assert run["duration_s"] == 2.0
    assert run["output_tokens"] == 7
    assert run["output_tokens_per_s"] == 3.5
    assert run["requests_per_s"] == 1.0
    assert run["prompt_tokens"] == 20
    assert run["ttft_ms"]["mean"] == pytest.approx(200)
    assert run["itl_ms"]["mean"] == pytest.approx(500 / 3, abs=1e-3)
    assert run["tpot_ms"]["mean"] == pytest.approx((75 + 200) / 2)
    assert run["e2e_ms"]["mean"] == pytest.approx(950)
    assert run["tokens_counted_by"] == "pieces of text and usage"


def test_gaps_together_are_those_while_all_answers_are_written() -> None:
    first, second = answer("a", 0.0, [0.1, 0.2, 0.4, 0.7]), answer("a", 0.0, [0.2, 0.35, 0.5, 1.5])
    assert gaps_together([first, second]) == pytest.approx([0.2, 0.3, 0.15, 0.15])  # from 0.2 to 0.7
    assert gaps_together([first, answer("a", 1.0, [1.1, 1.2])]) == []
    assert gaps_together([]) == []


def test_parts_are_per_model_and_sum_to_the_whole() -> None:
    outcomes = [answer("a", 0.0, [0.1, 0.2], 2), answer("b", 0.0, [0.4, 0.6], 2), failure("b", "timeout", "")]
    run = summarize(outcomes)
    a, b = run["per_model"]["a"], run["per_model"]["b"]
    assert (a["ttft_ms"]["p50"], b["ttft_ms"]["p50"]) == (100.0, 400.0)
    assert (a["errors"], b["errors"]) == ({}, {"timeout": 1})
    assert a["output_tokens"] + b["output_tokens"] == run["output_tokens"]
    assert a["output_tokens_per_s"] + b["output_tokens_per_s"] == pytest.approx(run["output_tokens_per_s"], abs=2e-3)


def test_failed_answers_do_not_count_as_latency() -> None:
    run = summarize([failure("a", "stream_error", "")])
    assert run["ttft_ms"]["p50"] is None
    assert run["output_tokens"] == 0


def test_a_run_without_calls_has_figures() -> None:
    assert summarize([])["output_tokens_per_s"] == 0.0
