from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.catalog.canary_rules import Agreement, Evidence, Figures, Rules, Verdict, judge, parse_gate, percentile


def figures(requests: int, *, errors: int = 0, ttft: float = 0.1, itl: float = 0.01) -> Figures:
    return Figures(requests, errors, (ttft,) * requests, (itl,) * requests)


def breaches(rules: Rules, canary: Evidence, live: Evidence) -> list[str]:
    return [verdict.rule for verdict in judge(rules, canary, live) if verdict.breached]


@pytest.mark.parametrize(
    ("rule", "bound", "canary", "live"),
    [
        ("max_error_rate", 0.1, figures(20, errors=3), Figures()),
        ("max_error_rate_above_live", 0.1, figures(20, errors=5), figures(20, errors=2)),
        ("max_ttft_p50_ratio", 1.5, figures(20, ttft=0.16), figures(20)),
        ("max_ttft_p95_ratio", 1.5, figures(20, ttft=0.16), figures(20)),
        ("max_itl_p50_ratio", 1.5, figures(20, itl=0.016), figures(20)),
        ("max_itl_p95_ratio", 1.5, figures(20, itl=0.016), figures(20)),
    ],
)
def test_what_breaches_a_rule(rule: str, bound: float, canary: Figures, live: Figures) -> None:
    def rules(**fields: Any) -> Rules:
        return Rules(**{"min_requests": 20, rule: bound, **fields})

    bad, base = Evidence(canary), Evidence(live)
    assert breaches(rules(), bad, base) == [rule]
    assert breaches(Rules(min_requests=20), bad, base) == [], "no rule, no breach"
    (verdict,) = judge(rules(min_requests=21), bad, base)
    assert (verdict.value, verdict.breached) == (None, False), "too few requests"
    assert breaches(rules(), Evidence(figures(20)), Evidence(figures(20))) == []
    if rule != "max_error_rate":
        assert breaches(rules(), bad, Evidence(figures(19))) == [], "too few of the live version"


def test_a_bound_itself_is_no_breach() -> None:
    assert breaches(Rules(min_requests=20, max_error_rate=0.1), Evidence(figures(20, errors=2)), Evidence()) == []
    ratio = Evidence(figures(20, ttft=0.3)), Evidence(figures(20, ttft=0.2))
    assert breaches(Rules(min_requests=20, max_ttft_p50_ratio=1.5), *ratio) == []
    rules = Rules(gates=("f1>=live-0.01",))
    assert breaches(rules, Evidence(scores={"f1": 0.79}), Evidence(scores={"f1": 0.8})) == []


def test_few_slow_requests_show_at_the_95th_percentile_alone() -> None:
    slow = Figures(100, 0, tuple(sorted([0.1] * 90 + [5.0] * 10)), ())
    rules = Rules(max_ttft_p50_ratio=2, max_ttft_p95_ratio=2)
    assert breaches(rules, Evidence(slow), Evidence(figures(100))) == ["max_ttft_p95_ratio"]


def test_what_a_shadow_says() -> None:
    bad = Evidence(agreement=Agreement(shares=(1.0, 0.5, 0.3), exact=1, ratios=(1.0, 3.0, 3.0)))
    rules = Rules(min_requests=3, min_agreement=0.9, min_exact=0.5, max_shadow_latency_ratio=2.0)
    assert breaches(rules, bad, Evidence()) == ["min_agreement", "min_exact", "max_shadow_latency_ratio"]
    good = Evidence(agreement=Agreement(shares=(1.0, 1.0, 0.9), exact=2, ratios=(1.0, 1.0, 3.0)))
    assert breaches(rules, good, Evidence()) == []
    few = Evidence(agreement=Agreement(shares=(0.0, 0.0), exact=0, ratios=(9.0, 9.0)))
    assert [verdict.value for verdict in judge(rules, few, Evidence())] == [None, None, None]


@pytest.mark.parametrize(
    ("gate", "value", "live", "breached"),
    [
        ("f1>=0.8", 0.79, None, True),
        ("f1>=0.8", 0.8, None, False),
        ("f1>0.8", 0.8, None, True),
        ("perplexity<=live", 9.1, 9.0, True),
        ("perplexity < live + 0.5", 9.1, 9.0, False),
        ("f1>=live-1e-2", 0.785, 0.8, True),
        ("f1>=live", None, 0.8, False),
        ("f1>=live", 0.5, None, False),
    ],
)
def test_gates(gate: str, value: float | None, live: float | None, breached: bool) -> None:
    scores = [
        {} if score is None else {gate.partition(">")[0].partition("<")[0].strip(): score} for score in (value, live)
    ]
    (verdict,) = judge(Rules(gates=(gate,)), Evidence(scores=scores[0]), Evidence(scores=scores[1]))
    assert verdict.breached is breached
    assert (verdict.value is None) == (value is None or ("live" in gate and live is None))


@pytest.mark.parametrize(
    "text", ["", "f1", "f1=0.8", "f1>=", "f1>=better", "f 1>=2", "f1>=live-", "f1>=1e999", "f1>=nan"]
)
def test_what_is_no_gate(text: str) -> None:
    with pytest.raises(ValueError, match="is not a gate"):
        parse_gate(text)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=200), st.sampled_from([50, 95]))
def test_percentiles(values: list[float], percent: int) -> None:
    values.sort()
    found = percentile(tuple(values), percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= percent * len(values)
    assert sum(value < found for value in values) * 100 < percent * len(values)
    assert percentile((), percent) is None


def test_a_verdict_in_words() -> None:
    assert str(Verdict("max_error_rate", 0.05, 0.12, 50, True)) == (
        "max_error_rate is 0.12 over 50 requests, the bound is 0.05"
    )
    assert "not known yet" in str(Verdict("f1>=0.5", 0.5, None, 0))
