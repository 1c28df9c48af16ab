"""One request's state."""

from __future__ import annotations

from typing import Any

import pytest

from server.engine.messages import FinishReason
from server.engine.request import find_problem
from server.model.inputs import VIRTUAL
from tests.server.engine.requests import make_request


def test_sequence_is_virtual_tokens_prompt_outputs() -> None:
    request = make_request(prompt_ids=[5, 6], num_virtual_tokens=2, outputs=(7,))
    assert request.token_ids == [VIRTUAL, VIRTUAL, 5, 6, 7]
    assert (request.num_prompt_tokens, request.num_output_tokens, request.num_pending_tokens) == (4, 1, 5)


def test_ends_at_max_tokens() -> None:
    request = make_request(max_tokens=2)
    assert request.append(1) is None
    assert request.append(1) is FinishReason.LENGTH


def test_ends_at_the_context() -> None:
    request = make_request(prompt_ids=[1, 2, 3], num_virtual_tokens=2, max_model_len=7)
    assert request.append(1) is None
    assert request.append(1) is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("params", "reasons"),
    [
        ({}, [None, FinishReason.STOP]),
        ({"ignore_eos": True}, [None, None]),
        ({"ignore_eos": True, "stop_token_ids": (8,)}, [FinishReason.STOP]),
        ({"min_tokens": 2}, [None, None, FinishReason.STOP]),
        ({"max_tokens": 2}, [None, FinishReason.STOP]),
    ],
)
def test_stop(params: dict[str, Any], reasons: list[FinishReason | None]) -> None:
    request = make_request(eos=(9,), **params)
    assert [request.append(token) for token in [8, 9, 9][: len(reasons)]] == reasons


def test_history_counts_outputs_but_knows_the_prompt() -> None:
    history = make_request(prompt_ids=[4, 5, 4], presence_penalty=1.0, outputs=(5, 6, 6)).history
    assert history is not None
    assert dict(zip(history.tokens, history.output_counts, strict=True)) == {4: 0, 5: 1, 6: 2}


def test_no_history_without_penalties() -> None:
    assert make_request().history is None


def test_what_must_not_come_next() -> None:
    request = make_request(prompt_ids=[1, 2], eos=(9,), min_tokens=1, bad_words=((5,), (2, 6), (1, 2, 7), (7, 7, 8)))
    assert sorted(request.forbidden_tokens) == [5, 9]
    for token, forbidden in ((1, [5]), (2, [5, 6, 7]), (7, [5]), (7, [5, 8]), (2, [5, 6])):
        request.append(token)
        assert sorted(request.forbidden_tokens) == forbidden


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (make_request(), None),
        (make_request(prompt_ids=[1, 64]), "between 0 and 63"),
        (make_request(logit_bias={-1: 1.0}), "between 0 and 63"),
        (make_request(allowed_token_ids=(3, 64)), "between 0 and 63"),
        (make_request(bad_words=((3,), (5, 64))), "between 0 and 63"),
        (make_request(prompt_ids=[1] * 10, max_model_len=10), "10 tokens of the model's context"),
        (make_request(prompt_ids=[1] * 8, num_virtual_tokens=2, max_model_len=10), "2 virtual"),
        (make_request(prompt_ids=[1] * 10, max_tokens=0, max_model_len=10), None),
    ],
)
def test_problems_are_found_before_running(request_: object, words: str | None) -> None:
    problem = find_problem(request_, 64, 10)  # type: ignore[arg-type]
    assert (problem is None) if words is None else (words in str(problem))
