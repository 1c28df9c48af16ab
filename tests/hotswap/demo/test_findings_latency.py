from __future__ import annotations

from hotswap.demo.findings import Phase, latency_in
from tests.hotswap.demo.answers import answer


def test_first_tokens_count_where_the_request_began_and_gaps_where_they_ended() -> None:
    early, late = Phase("early", 0.0, 2.5), Phase("late", 2.5, 100.0)
    answers = [answer(["a"] * 4, start=0.0, step=1.0), answer(["a"] * 2, start=2.0, step=0.25)]
    # stamps: 1 2 3 4, and 2.25 2.5
    first = latency_in(early, answers)
    assert (first.requests, first.ttft_p50, first.itl_p50, first.itl_max) == (2, 625.0, 1000.0, 1000.0)
    second = latency_in(late, answers)
    assert (second.requests, second.ttft_p50, second.itl_p50, second.itl_max) == (0, None, 1000.0, 1000.0)
    assert second.itl_p95 == 1000.0


def test_an_answer_without_text_has_no_latency() -> None:
    assert latency_in(Phase("all", 0.0, 9.0), [answer([])]).ttft_p50 is None
