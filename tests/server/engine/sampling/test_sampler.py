"""Sampling: distributions, filters, independence of the batch."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.request import Request
from server.engine.sampling.sampler import NonFiniteLogitsError, Sampler
from tests.server.engine.requests import make_request
from tests.server.engine.sampling.support import VOCAB, random_logits, random_request


def sample(logits: Tensor, requests: list[Request]) -> list[int]:
    return Sampler().sample(logits, requests).token_ids


def draws(logits: Tensor, count: int, **params: Any) -> Tensor:
    """``count`` tokens of one row of logits, with seeds 0, 1, ..."""
    requests = [make_request(seed=seed, **params) for seed in range(count)]
    return torch.tensor(sample(logits.expand(count, -1), requests))


def expected_support(
    logits: Tensor, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Tensor:
    """The filtered distribution by the definition: sort everything, one row at a time."""
    probs = (logits.double() / temperature).softmax(-1)
    probs[probs < min_p * probs.max()] = 0
    if top_k:
        probs[probs.argsort(descending=True)[top_k:]] = 0
    probs /= probs.sum()
    order = probs.argsort(descending=True)
    before = probs[order].cumsum(0) - probs[order]
    probs[order[before >= top_p]] = 0
    return probs / probs.sum()


def test_greedy_is_argmax() -> None:
    logits = random_logits(6)
    assert sample(logits, [make_request(temperature=0.0) for _ in range(6)]) == logits.argmax(-1).tolist()
    assert sample(logits, [make_request(top_k=1, seed=i) for i in range(6)]) == logits.argmax(-1).tolist()


def test_the_first_of_equal_logits_wins() -> None:
    logits = torch.zeros(1, 100)
    logits[0, [17, 40]] = 3.0
    assert sample(logits, [make_request(temperature=0.0)]) == [17]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"top_k": 12, "top_p": 0.8, "temperature": 1.3},
        {"top_k": 15, "top_p": 0.9, "min_p": 0.05, "temperature": 0.8},
    ],
)
def test_draws_follow_the_distribution(params: dict[str, Any]) -> None:
    logits = random_logits(1, vocab=20, scale=1.0)[0]
    expected = expected_support(logits, **params)
    count = 20_000
    counts = torch.bincount(draws(logits, count, **params), minlength=20).double()
    kept = expected > 0
    assert counts[~kept].sum() == 0
    chi_square = float(((counts - count * expected)[kept] ** 2 / (count * expected[kept])).sum())
    degrees = int(kept.sum()) - 1
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5 + 6  # beyond the 0.9999 quantile


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])  # nuclei of thousands, hundreds and a few tokens
@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.5, 0.95, 0.9999])
def test_top_p_keeps_what_its_definition_keeps(scale: float, top_p: float) -> None:
    logits = random_logits(1, scale=scale)[0]
    kept = expected_support(logits, top_p=top_p) > 0 if top_p else torch.arange(VOCAB) == logits.argmax()
    count = 1000
    drawn = torch.bincount(draws(logits, count, top_p=top_p), minlength=VOCAB) > 0
    assert not (drawn & ~kept).any()
    if int(kept.sum()) < 20:
        assert torch.equal(drawn, kept) or top_p > 0.9


def test_generated_tokens_advance_the_row() -> None:
    logits = random_logits(1, scale=0.5)
    tokens = {sample(logits, [make_request(seed=3, outputs=tuple(range(n)))])[0] for n in range(20)}
    assert len(tokens) > 15


@pytest.mark.parametrize("tied", [False, True])
def test_a_row_is_independent_of_the_batch(tied: bool) -> None:
    """Exactly: every row alone, in any order and in parts gives the tokens and logprobs it gives in the batch."""
    rng = random.Random(1)
    count = 60
    requests = [random_request(rng) for _ in range(count)]
    logits = random_logits(count)
    if tied:
        logits = logits.bfloat16().float().round()
    before = logits.clone()
    whole = Sampler().sample(logits, requests)
    assert torch.equal(logits, before), "the model's logits are not changed"
    order = rng.sample(range(count), count)
    for part in [*([i] for i in range(count)), order, order[:7], order[7:40]]:
        output = Sampler().sample(logits[part], [requests[i] for i in part])
        assert output.token_ids == [whole.token_ids[i] for i in part]
        assert output.logprobs == [whole.logprobs[i] for i in part]


def test_no_stop_before_min_tokens() -> None:
    logits = torch.zeros(3, 50)
    logits[:, 7] = 9.0
    logits[:, 8] = 5.0
    young = make_request(temperature=0.0, eos=(7,), min_tokens=2, outputs=(1,))
    old = make_request(temperature=0.0, eos=(7,), min_tokens=2, outputs=(1, 1))
    beyond = make_request(temperature=0.0, stop_token_ids=(7, 999), min_tokens=2)
    assert sample(logits, [young, old, beyond]) == [8, 7, 8]


def test_logprobs_are_of_the_unchanged_logits() -> None:
    logits = random_logits(3)
    expected = logits.log_softmax(-1)
    requests = [
        make_request(temperature=0.0, logprobs=3, logit_bias={4: 100.0}, repetition_penalty=2.0),
        make_request(temperature=0.0),
        make_request(temperature=0.3, top_k=2, logprobs=0),
    ]
    output = Sampler().sample(logits, requests)
    assert output.token_ids[0] == 4
    first, none, last = output.logprobs
    assert first is not None
    assert last is not None
    assert none is None
    assert first.token_id == 4
    assert first.logprob == pytest.approx(float(expected[0, 4]))
    assert [token for token, _ in first.top] == expected[0].topk(3).indices.tolist()
    assert [value for _, value in first.top] == pytest.approx(expected[0].topk(3).values.tolist())
    assert last.top == ()
    assert last.logprob == pytest.approx(float(expected[2, last.token_id]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_raise(bad: float) -> None:
    logits = random_logits(2)
    logits[1, 5] = bad
    with pytest.raises(NonFiniteLogitsError):
        sample(logits, [make_request(), make_request()])


def test_nothing_but_minus_infinity_raises() -> None:
    with pytest.raises(NonFiniteLogitsError):
        sample(torch.full((1, 9), -torch.inf), [make_request(temperature=0.0)])


def test_nothing_to_sample() -> None:
    output = Sampler().sample(torch.zeros(0, 9), [])
    assert (output.token_ids, output.logprobs) == ([], [])


def test_extreme_parameters_stay_finite() -> None:
    logits = random_logits(1)
    best = int(logits.argmax())
    assert sample(logits, [make_request(temperature=1e-9)]) == [best]
    assert sample(logits, [make_request(min_p=1.0)]) == [best]
    assert sample(logits * 1e6, [make_request(temperature=0.01, top_p=0.5)]) == [best]


def test_behind_a_draft_each_place_has_its_own_random_number() -> None:
    """The same as with the tokens before it in the output, beside a greedy request and others."""
    logits = random_logits(1).expand(6, -1)
    ahead, seeds = [0, 1, 2, 0, 1, 0], [5, 5, 5, 6, 6, 7]
    temperatures = [1.0, 1.0, 1.0, 0.0, 0.0, 0.7]
    requests = [make_request(seed=seed, temperature=t) for seed, t in zip(seeds, temperatures, strict=True)]
    behind = [
        make_request(seed=seed, temperature=t, outputs=tuple(range(n)))
        for seed, t, n in zip(seeds, temperatures, ahead, strict=True)
    ]
    found = Sampler().sample(logits, requests, ahead).token_ids
    assert found == sample(logits, behind)
    assert found[:3] != sample(logits, requests)[:3]
