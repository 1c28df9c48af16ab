"""Log-probabilities of chosen and of the most likely tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from server.engine.sampling.sampler import Sampler, token_logprobs, token_ranks
from tests.server.engine.requests import make_request


def test_chosen_and_top() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    first, second = token_logprobs(logits, [0, 0], [2, 0])
    expected = logits.log_softmax(-1)
    assert first.logprob == pytest.approx(float(expected[0, 0]))
    assert [token for token, _ in first.top] == [1, 2]
    assert first.top[0][1] == pytest.approx(float(expected[0, 1]))
    assert (second.token_id, second.top) == (0, ())


def test_no_more_than_the_vocabulary() -> None:
    assert len(token_logprobs(torch.zeros(1, 3), [0], [20])[0].top) == 3


def test_nothing() -> None:
    assert token_logprobs(torch.zeros(0, 3), [], []) == []


def test_ranks() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    assert token_ranks(logits, [0, 0]) == [3, 1]
    assert token_ranks(logits, [1, 2]) == [1, 2]


def test_tokens_that_are_named() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0], [0.0, 2.0, 1.0, -1.0], [0.0, 2.0, 1.0, -1.0]])
    settings: list[dict[str, Any]] = [{"logprob_token_ids": (3, 0), "logprobs": 3}, {"logprobs": 1}, {}]
    requests = [make_request(temperature=0.0, **one) for one in settings]
    named, likeliest, none = Sampler().sample(logits, requests).logprobs
    expected = logits[0].log_softmax(-1).tolist()
    assert named is not None
    assert [token for token, _ in named.top] == [1, 0, 3]  # the chosen one with them, best first
    assert [value for _, value in named.top] == pytest.approx([expected[1], expected[0], expected[3]])
    assert likeliest is not None
    assert [token for token, _ in likeliest.top] == [1]
    assert none is None
