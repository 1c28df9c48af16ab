"""Tags of words as spans, in every scheme; and the words of texts."""

from __future__ import annotations

import pytest

from trainer.data.tags import Span, as_bio, label_in_bio, order_of, read_tags, spans_of, words_of

ADA, LONDON = Span("PER", 0, 2), Span("LOC", 3, 4)
BIO = ("B-PER", "I-PER", "O", "B-LOC")


@pytest.mark.parametrize(
    "tags",
    [
        BIO,
        ("I-PER", "I-PER", "O", "I-LOC"),  # IOB1
        ("B-PER", "E-PER", "O", "S-LOC"),  # BIOES, BMES
        ("B-PER", "L-PER", "O", "U-LOC"),  # BILOU
    ],
)
def test_schemes_say_the_same(tags: tuple[str, ...]) -> None:
    assert list(spans_of(tags)) == [ADA, LONDON]
    assert as_bio(tags) == BIO


@pytest.mark.parametrize(
    ("tags", "spans"),
    [  # what seqeval's get_entities and conlleval make of them
        (["B-A", "B-A", "I-A"], [("A", 0, 1), ("A", 1, 3)]),
        (["B-A", "I-B", "I-B"], [("A", 0, 1), ("B", 1, 3)]),
        (["O", "I-A", "O", "I-A"], [("A", 1, 2), ("A", 3, 4)]),
        (["B-A", "E-A", "I-A", "E-A"], [("A", 0, 2), ("A", 2, 4)]),
        (["S-A", "I-A"], [("A", 0, 1), ("A", 1, 2)]),
        (["B-A", "M-A", "E-A", "E-A"], [("A", 0, 3), ("A", 3, 4)]),
        (["B", "I", "O", "B"], [("", 0, 2), ("", 3, 4)]),
        (["B-work-of-art", "I-work-of-art"], [("work-of-art", 0, 2)]),
        (["NOUN", "VERB", "O"], []),
        ([], []),
    ],
)
def test_spans(tags: list[str], spans: list[tuple[str, int, int]]) -> None:
    assert list(spans_of(tags)) == spans
    assert list(spans_of(as_bio(tags))) == spans


def test_words_that_share_a_token_go_on_with_its_span() -> None:
    assert read_tags(["B-A", None, None, "O", None, "I-B", "X", None]) == [
        *("B-A", "I-A", "I-A", "O", "O", "I-B", "X", "X"),
    ]
    assert read_tags([None]) == ["O"]


def test_labels_are_sorted_by_what_they_name() -> None:
    found = {label_in_bio(tag) for tag in ("S-PER", "O", "M-LOC", "B-LOC", "E-PER", "NOUN")}
    assert sorted(found, key=order_of) == ["O", "B-LOC", "I-LOC", "NOUN", "B-PER", "I-PER"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's  12 km, isn't it?", ["It", "'", "s", "12", "km", ",", "isn", "'", "t", "it", "?"]),
        ("我在London。", ["我", "在", "London", "。"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs and viramas are of their words
        ("ไทย", ["ไ", "ท", "ย"]),
        (" \n", []),
    ],
)
def test_words_of_a_text(text: str, words: list[str]) -> None:
    assert [text[start:end] for start, end in words_of(text)] == words
