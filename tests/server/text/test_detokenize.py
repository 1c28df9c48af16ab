from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from server.text.detokenize import IncrementalDecoder, OutputText, StopFinder
from server.text.tokenizer import TextProcessor
from tests.factory import VOCAB_SIZE, make_tokenizer
from tests.server.text.tokenizer_kinds import number, processor

BYTES = TextProcessor(make_tokenizer())


def sentencepiece_like() -> TextProcessor:
    """Words with "▁" for spaces, bytes for the rest, the first space of a text stripped: as llama 2 has it."""
    words = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "▁Hello", "▁world", "lo", "▁a", "b", "é"]
    backend = Tokenizer(
        models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    backend.add_special_tokens(["<s>"])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return TextProcessor(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>"))


PIECES = sentencepiece_like()
TRUE = processor("llama-2")


def stream(text: TextProcessor, ids: list[int], context: list[int] | None = None, *, skip: bool = True) -> list[str]:
    decoder = IncrementalDecoder(text, context or [], skip_special_tokens=skip)
    return [*(decoder.push(token) for token in ids), decoder.flush()]


@given(st.text(max_size=60))
def test_streamed_text_is_the_text(content: str) -> None:
    ids = BYTES.encode(content, add_special_tokens=False)
    pieces = stream(BYTES, ids, skip=False)
    assert "".join(pieces) == content
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in content


@given(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=80))
@settings(max_examples=300)
def test_any_tokens_at_all_give_what_decoding_at_once_gives(ids: list[int]) -> None:
    for skip in (True, False):
        wanted = BYTES.decode(ids, skip_special_tokens=skip)
        streamed = "".join(stream(BYTES, ids, skip=skip))
        assert streamed == wanted


def test_a_character_comes_when_it_is_complete() -> None:
    ids = BYTES.encode("a€🎉b", add_special_tokens=False)
    assert stream(BYTES, ids) == ["a", "", "", "€", "", "", "", "🎉", "b", ""]


def test_an_incomplete_end_is_shown_as_such() -> None:
    ids = BYTES.encode("x€", add_special_tokens=False)[:-1]
    assert stream(BYTES, ids) == ["x", "", "", "\ufffd"]


def test_garbage_is_shown_at_once() -> None:
    garbage = BYTES.encode("€", add_special_tokens=False)[1:2] * 9
    assert stream(BYTES, garbage) == ["\ufffd"] * 9 + [""]


def test_spaces_are_those_inside_a_text() -> None:
    vocab = PIECES._backend.get_vocab()
    hello, world = vocab["▁Hello"], vocab["▁world"]
    assert stream(PIECES, [world, world], [hello]) == [" world", " world", ""]
    assert stream(PIECES, [hello, world]) == ["Hello", " world", ""]
    assert stream(PIECES, [vocab["<s>"], hello, world], [vocab["b"]]) == ["", " Hello", " world", ""]


def test_bytes_that_are_no_text_do_not_silence_what_follows() -> None:
    vocab = PIECES._backend.get_vocab()
    ids = [vocab["<0xE2>"], vocab["<0x82>"], vocab["<0xAC>"], vocab["<0xFF>"], vocab["▁a"], vocab["b"]]
    assert "".join(stream(PIECES, ids)).endswith(" ab")


def test_a_context_that_ends_inside_a_character_is_left_alone() -> None:
    euro = BYTES.encode("€", add_special_tokens=False)
    assert "".join(stream(BYTES, [*euro[1:], *BYTES.encode("x", add_special_tokens=False)], euro[:1])).endswith("x")


# ---- stop strings ----


def run_finder(stops: list[str], pieces: list[str], *, include: bool = False) -> tuple[list[str], bool]:
    finder = StopFinder(stops, include=include)
    out = []
    for piece in pieces:
        out.append(finder.push(piece))
        if finder.stopped:
            return out, True
    out.append(finder.flush())
    return out, False


@given(st.lists(st.text("ab", min_size=1, max_size=6), max_size=4), st.lists(st.text("abc", max_size=5), max_size=8))
def test_what_is_found_is_the_match_that_ends_first_and_of_those_the_longest(
    stops: list[str], pieces: list[str]
) -> None:
    text = "".join(pieces)
    ends = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    shown, stopped = run_finder(stops, pieces)
    assert stopped == bool(ends)
    assert "".join(shown) == (text[: sum(min(ends))] if ends else text)


def test_no_stop_string_makes_a_text_slow() -> None:
    """What comes again and again may be the beginning of all of them, and looked at anew for each token."""
    stops = ["a" * 255 + "b", *("a" * size + "c" + "a" * (255 - size) for size in range(100, 115))]
    finder, started = StopFinder(stops), time.perf_counter()
    for _ in range(20_000):
        finder.push("a")
    assert time.perf_counter() - started < 5  # a quarter of a second, alone; looking at all of it anew: 15


def test_a_part_of_a_stop_string_is_held_back() -> None:
    assert run_finder(["END"], ["a", "E", "N", "x", "E", "ND", "y"]) == (["a", "", "", "ENx", "", ""], True)
    assert run_finder(["END"], ["aEN"]) == (["a", "EN"], False)


def test_the_stop_string_can_be_kept() -> None:
    assert run_finder(["END"], ["aE", "NDb"], include=True) == (["a", "END"], True)


def test_the_match_that_ends_first_wins() -> None:
    assert run_finder(["bcd", "c"], ["abcd"]) == (["ab"], True)
    assert run_finder(["d", "bcd"], ["abcd"]) == (["a"], True)


@given(
    st.text("ab", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 4), min_size=12, max_size=12),
    st.booleans(),
)
@settings(max_examples=400)
def test_how_the_text_is_cut_into_pieces_does_not_matter(
    content: str, stops: list[str], sizes: list[int], include: bool
) -> None:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(content[at : at + size])
        at += size
    by_pieces, stopped = run_finder(stops, [p for p in pieces if p], include=include)
    ends = [(content.find(s) + len(s), -len(s)) for s in stops if s in content]
    assert stopped == bool(ends)
    wanted = content if not ends else content[: min(ends)[0] + (0 if include else min(ends)[1])]
    assert "".join(by_pieces) == wanted


# ---- both together ----


def output(stops: list[str], min_tokens: int = 0) -> OutputText:
    return OutputText(IncrementalDecoder(BYTES), StopFinder(stops), min_tokens=min_tokens)


def test_offsets_are_where_characters_begin() -> None:
    text = output([])
    shown, places = text.push(BYTES.encode("a€b", add_special_tokens=False))
    assert (shown, [place.offset for place in places]) == ("a€b", [0, 1, 1, 1, 2])


def test_tokens_after_the_stop_are_not_consumed() -> None:
    text = output(["c"])
    shown, places = text.push(BYTES.encode("abcde", add_special_tokens=False))
    assert (shown, len(places), text.stopped, text.length) == ("ab", 3, True, 2)
    assert [text.cut(place) for place in places] == [*places[:2], None]
    assert text.finish() == ""


@pytest.mark.parametrize(("stop", "include", "wanted"), [("u", False, [b"lo", b" tr"]), ("u", True, [b"lo", b" tru"])])
def test_a_stop_string_may_begin_inside_a_token(stop: str, include: bool, wanted: list[bytes]) -> None:
    text = OutputText(IncrementalDecoder(TRUE), StopFinder([stop], include=include))
    shown, places = text.push([number(TRUE, token) for token in ("l", "o", "▁true", "a")])
    assert shown == b"".join(wanted).decode()
    cut = [kept.spelt for place in places if (kept := text.cut(place))]
    assert cut == [b"l", b"o", wanted[-1]]


def test_a_token_is_out_when_all_its_text_is() -> None:
    text = OutputText(IncrementalDecoder(TRUE), StopFinder(["uex"]))
    shown, places = text.push([number(TRUE, "a"), number(TRUE, "▁true")])
    assert (shown, [text.shows(place) for place in places]) == ("a tr", [True, False])
    text.finish()
    assert all(map(text.shows, places))


@pytest.mark.parametrize(("min_tokens", "wanted"), [(0, ""), (1, "a"), (2, "aa"), (9, "aaa")])
def test_stop_strings_wait_for_min_tokens(min_tokens: int, wanted: str) -> None:
    text = output(["a"], min_tokens)
    shown, _ = text.push(BYTES.encode("aaa", add_special_tokens=False))
    assert shown + text.finish() == wanted


def test_what_was_held_back_comes_at_the_end() -> None:
    text = output(["bcd"])
    shown, _ = text.push(BYTES.encode("abc", add_special_tokens=False))
    assert (shown, text.finish(), text.stopped) == ("a", "bc", False)


def test_a_stop_string_may_be_complete_only_at_the_end() -> None:
    text = output(["\ufffd"])
    shown, _ = text.push(BYTES.encode("a€", add_special_tokens=False)[:-1])
    assert (shown, text.finish(), text.stopped) == ("a", "", True)
