"""Grammars over tokenizers of every kind: what masks let through is what the text then says."""

from __future__ import annotations

import random
import re
from functools import cache

import numpy as np
import pytest
from llguidance import LLMatcher

from server.engine.grammar import OutputGrammar
from server.engine.grammar_limits import LIMITS
from server.engine.messages import SpelledToken
from server.engine.vocabulary import Vocabulary
from server.text.detokenize import IncrementalDecoder
from server.text.grammars import Form, Kind, grammar_of
from server.text.tokenizer import TextProcessor
from tests.server.text.tokenizer_kinds import KINDS, processor

made = cache(processor)
WORDS = r" ?[a-zé]{1,9}( [a-zé]{1,7}){0,4} ?"


def vocabulary(text: TextProcessor) -> Vocabulary:
    size = max(text._backend.get_vocab(with_added_tokens=True).values()) + 1
    return Vocabulary(text.spelling.table(size), text.spelling.special_ids)


def follow(known: Vocabulary, form: Form, seed: int, most: int = 200) -> list[int]:
    """A random output that a grammar allows, of tokens that are equally likely."""
    rng = random.Random(seed)
    grammar = OutputGrammar(LLMatcher(known.for_matchers, grammar_of(form), limits=LIMITS), known)
    tokens: list[int] = []
    while not grammar.is_complete and len(tokens) < most:
        words = np.frombuffer(grammar.matcher.compute_bitmask(), dtype=np.uint32)
        mask = grammar.finish_mask(words, [], ())
        allowed = np.unpackbits(mask, bitorder="little").nonzero()[0].tolist()
        may_end = grammar.matcher.is_accepting()
        assert not grammar.problem
        assert allowed or may_end
        if not allowed or (may_end and rng.random() < 0.2):
            break
        tokens.append(rng.choice(allowed))
        assert grammar.fitting([tokens[-1]]) == 1
        assert grammar.take(tokens[-1])
    return tokens


def written(text: TextProcessor, tokens: list[int]) -> str:
    """What a client reads of an output behind a prompt."""
    decoder = IncrementalDecoder(text, text.encode("hello", add_special_tokens=False), skip_special_tokens=True)
    return "".join(decoder.push(token) for token in tokens) + decoder.flush()


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_match_their_pattern_in_every_kind_of_tokenizer(kind: str) -> None:
    text = made(kind)
    known = vocabulary(text)
    found = {written(text, follow(known, Form(Kind.REGEX, WORDS, "x"), seed)) for seed in range(30)}
    assert len(found) > 10
    for output in found:
        assert re.fullmatch(WORDS, output), output


@pytest.mark.parametrize("kind", ["byte-level", "llama-2", "gemma"])
def test_characters_of_several_tokens_are_whole(kind: str) -> None:
    text = made(kind)
    for seed in range(20):
        output = written(text, follow(vocabulary(text), Form(Kind.REGEX, "(\u2603|\U0001d11e|é|x){3}", "x"), seed))
        assert re.fullmatch("(\u2603|\U0001d11e|é|x){3}", output), output


def test_tokens_that_an_adapter_adds_are_written_and_named() -> None:
    text = made("byte-level")
    base = vocabulary(text)
    added = (SpelledToken(base.end + 2, b"yesyes", False), SpelledToken(base.end + 3, b"<call>", True))
    known = base.with_tokens(added)
    assert known.end == base.end + 4
    outputs = [follow(known, Form(Kind.CHOICE, ["yesyesyes"], "x"), seed) for seed in range(20)]
    assert any(base.end + 2 in tokens for tokens in outputs)
    assert not any(base.end + 3 in tokens for tokens in outputs)
    assert follow(known, Form(Kind.GRAMMAR, 'start: <call> "s"', "x"), 0)[0] == base.end + 3
    assert not any(base.end <= token for token in follow(base, Form(Kind.CHOICE, ["yesyesyes"], "x"), 0))
