"""YAML by keys: what is written is read back equal, with and without quotes; what cannot be read is one plain line."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from trainer.config.scalars import plain_value
from trainer.config.yaml_text import read_mapping, read_value, write
from trainer.errors import ConfigError

WORDS = st.sampled_from([
    *("1e5", "2e3 words", "2024-02-30", "2024-01-01", "0x1f", "0b_", "0o17", "017", "1_000", ".5e3x", "12:30:45"),
    *("off", "yes", "null", "Null", "~", "=", "<<", "@name", ": x", "- x", "#x", "a: b", "a #b", "!!int 3", "&a", "*a"),
    *("%", "?", " x", "x ", "\tx", "x\n", "\nx", "x\n\n y\n", "'", '"', "''", "{a}", "[a, b]", "---", "...", "\x85a"),
    "",
])  # fmt: skip
TEXTS = WORDS | st.text(max_size=40) | st.lists(WORDS, max_size=3).map("\n".join)
VALUES = TEXTS | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none()
TREES = st.dictionaries(
    TEXTS, VALUES | st.lists(VALUES, max_size=3) | st.dictionaries(TEXTS, VALUES, max_size=3), max_size=4
)


def guess(_: str, text: str) -> Any:
    """As YAML itself would, knowing no keys."""
    return plain_value(text)


def as_text(_: str, text: str) -> Any:
    return text


@given(TREES)
@example({"a": " ".join(["word"] * 60) + "  " + "x" * 200, "b" * 200: "c"})
def test_what_is_written_is_read_back_equal(tree: dict[str, Any]) -> None:
    assert read_mapping(write(tree), guess) == tree


@given(TREES)
def test_other_readers_of_yaml_read_the_same(tree: dict[str, Any]) -> None:
    assert yaml.safe_load(write(tree)) == tree


@given(TEXTS)
def test_texts_are_read_back_where_the_key_takes_text(text: str) -> None:
    assert read_mapping(write({"a": {"b": text}}), as_text) == {"a": {"b": text}}
    assert read_value("a", write(text), as_text)[0] == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        ("{a: '1', b: \"2\", c: 3}", {"a": "1", "b": "2", "c": 3}),
        ("a: |\n  1e5\n", {"a": "1e5\n"}),
        ("'1': 2", {"1": 2}),
        ("a:\n", {"a": None}),
    ],
)
def test_quotes_and_anchors_are_as_in_yaml(text: str, value: object) -> None:
    assert read_mapping(text, guess) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "line 2: the key 'a' appears twice"),
        ("1: x", "line 1: 1 is not a key"),
        ("[a]: x", "line 1: a list or mapping is not a key"),
        ("a: !!int x", "line 1: leave out the tag !!int"),
        ("a: !!timestamp 2024-02-30", "leave out the tag !!timestamp"),
        ("a: !foo {b: c}", "leave out the tag !foo"),
        ("a: &x [*x]", "line 1: it contains itself"),
        ("a: [", "it is not valid YAML: line 1: "),
        ("a: *x", "it is not valid YAML: line 1: found undefined alias"),
        ("a: " + "[" * 1000, "it is nested too deeply"),
        ("a: 1\n---\nb: 2", "it is not valid YAML: "),
        ("a: \x01", "it is not valid YAML: "),
        ("just words", "it must hold keys and values"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_mapping(text, guess)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "quoted"), [("'a'", True), ('"a" ', True), ("a", False), ("'a' # b", False), ("['a']", False)]
)
def test_a_text_is_quoted_where_all_of_it_is(text: str, quoted: bool) -> None:
    assert read_value("k", text, guess)[1] == quoted
