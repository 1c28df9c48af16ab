from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from adapters.package.added_tokens import AddedToken
from bases.token_spelling import INSIDE, TokenSpelling, first_chars, readable
from server.text.detokenize import IncrementalDecoder
from tests.server.text.tokenizer_kinds import KINDS, number, processor

made = cache(processor)


def spelling(kind: str) -> TokenSpelling:
    return made(kind).spelling


def backend(kind: str) -> Tokenizer:
    return made(kind)._backend


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), skip=st.booleans())
@settings(max_examples=60)
def test_tokens_joined_are_what_the_tokenizer_decodes(kind: str, data: st.DataObject, skip: bool) -> None:
    text = made(kind)
    size = backend(kind).get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size + 2), max_size=12))
    wanted = backend(kind).decode(ids, skip_special_tokens=skip)
    found = text.decode(ids, skip_special_tokens=skip)
    if "byte" in kind or "\ufffd" not in wanted:
        assert found == wanted
    assert b"".join(text.spelling.spell_all(ids, skip_special_tokens=skip)).decode(errors="replace") == found


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), skip=st.booleans())
@settings(max_examples=60)
def test_pieces_and_places_are_the_text_whatever_stands_before(kind: str, data: st.DataObject, skip: bool) -> None:
    text = made(kind)
    ids = st.lists(st.integers(0, backend(kind).get_vocab_size() - 1), max_size=10)
    context, output = data.draw(ids), data.draw(ids)
    decoder = IncrementalDecoder(text, context, skip_special_tokens=skip)
    placed = [decoder.place(token) for token in output]
    shown = "".join(piece for piece, _ in placed) + decoder.flush()
    assert b"".join(place.spelt for _, place in placed).decode(errors="replace") == shown
    for piece, place in placed:
        broken = "\ufffd" * (len(piece) - (place.end - place.offset))  # what the token leaves incomplete
        assert broken + shown[place.offset : place.end] == piece
    before = text.decode(context, skip_special_tokens=skip)
    if "\ufffd" not in before + shown:
        assert before + shown == text.decode([*context, *output], skip_special_tokens=skip)


def test_a_leading_space_belongs_to_its_token_but_at_the_beginning() -> None:
    for kind, alone in (("llama-2", b"true"), ("gemma", b" true"), ("unigram", b"true")):
        true = number(made(kind), "▁true")
        assert spelling(kind).spell(true, INSIDE) == b" true"
        assert spelling(kind).spell(true, None) == alone


def test_parts_of_characters_have_their_own_bytes() -> None:
    assert spelling("llama-2").spell(number(made("llama-2"), "<0xE2>"), INSIDE) == b"\xe2"
    assert spelling("llama-2").spell(number(made("llama-2"), "<0x0A>"), INSIDE) == b"\n"
    assert spelling("byte-level").spell(number(made("byte-level"), "Ġâ"), INSIDE) == b" \xe2"


def test_what_looks_like_a_byte_is_text_where_the_decoder_has_no_bytes() -> None:
    tokenizer = KINDS["unigram"]()
    tokenizer.add_tokens(["<0x41>"])
    assert TokenSpelling(tokenizer).spell(tokenizer.get_vocab()["<0x41>"], INSIDE) == b"<0x41>"


def test_special_and_unknown_tokens_are_no_beginning_where_they_are_not_shown() -> None:
    text, true = made("llama-2"), number(made("llama-2"), "▁true")
    assert text.spelling.end_of([1, 9999], skip_special_tokens=True) is None
    assert text.spelling.end_of([1, 9999], skip_special_tokens=False) == INSIDE
    assert IncrementalDecoder(text, [1, 1]).push(true) == "true"
    assert IncrementalDecoder(text, [1], skip_special_tokens=False).push(true) == " true"
    assert IncrementalDecoder(text, [true, 1, 1, 1, 1, 1, 1, 1]).push(true) == " true"


def test_a_context_that_ends_inside_a_character_still_is_a_context() -> None:
    text = made("llama-2")
    true, part = number(text, "▁true"), number(text, "<0xE2>")
    assert IncrementalDecoder(text, [true, part]).push(true) == " true"


@pytest.mark.parametrize(
    ("spelt", "read"),
    [
        (b" true", " true"),
        ("é€".encode(), "é€"),
        (b"", ""),
        (b"\xe2\x80", r"bytes:\xe2\x80"),
        (b" \xe2", r"bytes: \xe2"),
        (b"\x80a", r"bytes:\x80a"),
    ],
)
def test_readable(spelt: bytes, read: str) -> None:
    assert readable(spelt) == read


@pytest.mark.parametrize(
    ("spelt", "count", "kept"),
    [
        (b"abc", 2, b"ab"),
        ("é€x".encode(), 2, "é€".encode()),
        (b"\x82\xacab", 2, b"\x82\xaca"),
        (b"\xacab", 1, b"\xac"),
        (b"ab\xe2", 1, b"a"),
        (b"abc", 9, b"abc"),
    ],
)
def test_the_beginning_of_a_token(spelt: bytes, count: int, kept: bytes) -> None:
    assert first_chars(spelt, count) == kept


def test_an_adapters_tokenizer_spells_its_own_tokens() -> None:
    base = made("llama-2")
    added = backend("llama-2").get_vocab_size()
    own = base.with_tokens((AddedToken(added, "<tool>", special=True),))
    assert own.token_bytes(added) == b"<tool>"
    assert own.spelling.is_special(added)
    assert base.token_bytes(added) == b""
