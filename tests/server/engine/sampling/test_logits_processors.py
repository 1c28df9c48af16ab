"""Bias, penalties and min_tokens against their definitions, token by token."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from server.engine.request import Request
from server.engine.sampling.logits_processors import needs_processing, process_logits
from tests.server.engine.requests import make_request

VOCAB = 40


def by_definition(logits: Tensor, request: Request) -> list[float]:
    """One row with plain loops over the vocabulary."""
    sampling = request.sampling
    outputs = request.token_ids[request.num_prompt_tokens :]
    row = logits.double().tolist()
    for token in range(VOCAB):
        row[token] += sampling.logit_bias.get(token, 0.0)
        if token in request.prompt_ids + outputs:
            factor = sampling.repetition_penalty
            row[token] = row[token] / factor if row[token] > 0 else row[token] * factor
        row[token] -= sampling.frequency_penalty * outputs.count(token) + sampling.presence_penalty * (token in outputs)
        if len(outputs) < sampling.min_tokens and token in request.stop_ids:
            row[token] = -torch.inf
    return row


def test_equals_the_definition() -> None:
    rng = random.Random(0)
    requests = [
        make_request(
            prompt_ids=[rng.randrange(VOCAB) for _ in range(6)],
            outputs=tuple(rng.randrange(VOCAB) for _ in range(i % 9)),
            eos=(39,),
            stop_token_ids=(2,),
            num_virtual_tokens=i % 3,
            presence_penalty=rng.choice([0.0, 0.7]),
            frequency_penalty=rng.choice([0.0, -0.3, 1.1]),
            repetition_penalty=rng.choice([1.0, 0.8, 1.5]),
            logit_bias=rng.choice([{}, {3: 5.0}, {0: -2.0, 39: 4.0}]),
            min_tokens=rng.choice([0, 4]),
        )
        for i in range(30)
    ]
    logits = torch.randn(30, VOCAB, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor([by_definition(row, request) for row, request in zip(logits, requests, strict=True)])
    torch.testing.assert_close(process_logits(logits, requests), expected, atol=1e-5, rtol=1e-5)


def test_plain_requests_need_nothing() -> None:
    assert not needs_processing(make_request(eos=(3,)))
    assert not needs_processing(make_request(min_tokens=5, ignore_eos=True, eos=(3,)))
    assert not needs_processing(make_request(min_tokens=1, eos=(3,), outputs=(1,)))
    assert needs_processing(make_request(min_tokens=1, eos=(3,)))
    assert needs_processing(make_request(logit_bias={1: 1.0}))
    assert needs_processing(make_request(repetition_penalty=1.1))
