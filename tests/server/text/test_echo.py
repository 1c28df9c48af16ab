from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bases.token_spelling import is_text
from server.text.echo import echo_of, place_prompt
from tests.server.text.tokenizer_kinds import KINDS, processor

made = cache(processor)
TEXTS = [
    "true hello world",
    " true",
    "true  the, hello!",
    "true</s>true",
    "<s> true </s> hello",
    "True HELLO",
    "trueé",
    "e\u0301 the true",
    "true 日 hello",
    "\ufb01 true ",
    "cafe\u0301 \u1112\u1161\u11ab",
    "▁true ▁",
    "hello\nworld",
]


def check(kind: str, ids: list[int], prompt: str) -> None:
    """The tokens of whole characters are the text at their places, and all of them are all of the text."""
    places = place_prompt(made(kind), ids, prompt)
    assert len(places) == len(ids)
    at = 0
    for place in places:
        if place.spelt and is_text(place.spelt):
            assert prompt[place.offset : place.end].encode() == place.spelt
        assert at <= place.end
        at = max(at, place.end)
    assert [place.offset for place in places] == sorted(place.offset for place in places)
    assert b"".join(place.spelt for place in places).decode() == prompt


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("prompt", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_its_tokens(kind: str, prompt: str, special: bool) -> None:
    check(kind, made(kind).encode(prompt, add_special_tokens=special), prompt)


@pytest.mark.parametrize("kind", KINDS)
@given(prompt=st.text("true hello.,<s>/é日", max_size=16))
@settings(max_examples=40)
def test_any_text(kind: str, prompt: str) -> None:
    if ids := made(kind).encode(prompt, add_special_tokens=True):
        check(kind, ids, prompt)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=40)
def test_numbers_are_echoed_with_their_special_tokens(kind: str, data: st.DataObject) -> None:
    size = made(kind)._backend.get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=10))
    echoed = echo_of(made(kind), ids)
    if "\ufffd" not in echoed:
        assert echoed == made(kind)._backend.decode(ids, skip_special_tokens=False)
        check(kind, ids, echoed)


def test_bytes_of_one_character_begin_where_it_does() -> None:
    text = made("byte-level")
    for prompt, offsets in (("a€b", [0, 1, 1, 1, 2]), ("e\u0301€b", [0, 0, 2, 2, 2, 3])):
        ids = text.encode(prompt, add_special_tokens=False)
        assert [place.offset for place in place_prompt(text, ids, prompt)] == offsets


def test_numbers_that_are_not_the_texts_stay_within_it() -> None:
    text = made("llama-2")
    places = place_prompt(text, text.encode("true hello", add_special_tokens=True), "tr")
    assert all(place.end <= 2 for place in places)


def test_a_dropped_accent_belongs_to_its_letter() -> None:
    text = made("wordpiece")
    ids = text.encode("cafe\u0301 true", add_special_tokens=False)
    places = place_prompt(text, ids, "cafe\u0301 true")
    assert [place.spelt.decode() for place in places][-2:] == ["e\u0301", " true"]
