"""Tokens that follow grammars: the same choice as among allowed tokens alone, whether or not all of these were told."""

from __future__ import annotations

from collections import Counter
from math import sqrt
from typing import Any

import pytest
import torch
from llguidance import LLMatcher

from server.engine.grammar import OutputGrammar
from server.engine.sampling.masks import GrammarSampler, Row
from server.engine.sampling.sampler import Sampler
from server.engine.vocabulary import Vocabulary
from server.text.grammars import Form, Kind, grammar_of
from tests.server.engine.requests import make_request

TOKENS = [b"a", b"b", b"c", b"d", b"ab", b"ba", b"x"]
VOCABULARY = Vocabulary(TOKENS, [])
LOGITS = torch.tensor([0.3, -1.0, 2.0, 1.5, 0.9, -0.4, 1.0, 2.5])  # of one token more than there are texts for
ALLOWED = [0, 1, 4, 5]
WANTED = {token: float(p) for token, p in zip(ALLOWED, LOGITS[ALLOWED].softmax(0), strict=True)}


def row(draft: tuple[int, ...] = (), **params: Any) -> Row:
    request = make_request(**params)
    grammar = grammar_of(Form(Kind.REGEX, "[ab]{40}", "x"))
    request.grammar = OutputGrammar(LLMatcher(VOCABULARY.for_matchers, grammar), VOCABULARY)
    return Row(request, draft)


def chosen(rows: list[Row]) -> list[int]:
    count = sum(1 + len(one.draft) for one in rows)
    sampled, stuck = GrammarSampler(Sampler()).sample(LOGITS.repeat(count, 1), rows)
    assert not stuck
    return sampled.token_ids


@pytest.mark.parametrize("filters", [{}, {"top_k": 7}])
@pytest.mark.parametrize("draft", [(), (4, 0)])
def test_draws_by_the_probabilities_of_what_is_allowed(draft: tuple[int, ...], filters: dict[str, Any]) -> None:
    rows = [row(draft, temperature=1.0, seed=seed, **filters) for seed in range(3000)]
    places = 1 + len(draft)
    found = Counter(chosen(rows)[places - 1 :: places])
    assert found.keys() == WANTED.keys()
    for token, p in WANTED.items():
        assert abs(found[token] / 3000 - p) < 4 * sqrt(p * (1 - p) / 3000)


def test_drafts_change_no_draw() -> None:
    for seed in range(50):
        alone = row(temperature=1.0, seed=seed, request_id="alone")
        first, second = chosen([alone])[0], None
        assert alone.request.append(first) is None
        second = chosen([alone])[0]
        assert chosen([row((first,), temperature=1.0, seed=seed)]) == [first, second]


def test_the_likeliest_allowed_one_is_taken_and_others_are_as_without() -> None:
    plain = Row(make_request(request_id="p", temperature=0.0), ())
    assert chosen([row(temperature=0.0), plain, row(temperature=0.0, request_id="again")]) == [4, 7, 4]
