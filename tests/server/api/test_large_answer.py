"""Answers in parts: the bytes of one, in order, and what is not sent is known."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from starlette.types import Message

from server.api.large_answer import PART_BYTES, UNSENT, LargeAnswer, json_parts, packed

ROW = {"token": "é\n", "logprob": -0.25, "bytes": [195, 169, 10], "top_logprobs": [{"token": '"', "logprob": -1e-9}]}
VALUES: dict[str, Any] = {
    "plain": {"id": "x", "none": None, "flag": True, "number": 1.5, "none of these": [], "nothing": {}},
    "lists of lists": [[1, 2], [], [[3]], "é", None, 10**18, {"a": {}}],
    "columns": {"tokens": ["a", "\u2028", ""] * 1000, "top_logprobs": [None, *[packed({"a": -1.0})] * 999]},
    "rows": {"choices": [{"index": i, "logprobs": {"content": [packed(ROW)] * 700}} for i in range(9)]},
    "a text": "text " * 1000,
}


@pytest.mark.parametrize("name", list(VALUES))
def test_parts_are_the_bytes_of_one_answer(name: str) -> None:
    assert b"".join(json_parts(VALUES[name])) == msgspec.json.encode(VALUES[name])


def test_an_iterator_is_a_list_that_is_made_while_it_is_written() -> None:
    assert b"".join(json_parts({"a": map(str, range(600)), "b": iter(())})) == msgspec.json.encode(
        {"a": [str(i) for i in range(600)], "b": []}
    )


def test_no_part_is_much_longer_than_it_should_be() -> None:
    parts = json_parts({"choices": [{"content": [packed("x" * 500)] * 4000}] * 3, "numbers": list(range(10**6))})
    assert len(parts) > 40
    assert max(map(len, parts)) < 2 * PART_BYTES


def test_what_the_client_has_not_taken_is_counted() -> None:
    value = {"tokens": list(range(200_000))}
    parts, state, left = json_parts(value), dict[str, Any](), list[int]()
    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))
        left.append(state.get(UNSENT, -1))

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    answer = LargeAnswer(parts, {"x-more": "1"})
    asyncio.run(answer({"type": "http", "state": state}, receive, send))
    assert b"".join(sent) == msgspec.json.encode(value)
    assert answer.headers["content-length"] == str(len(b"".join(sent)))
    assert answer.headers["x-more"] == "1"
    assert left == [-1, *(sum(map(len, parts[i + 1 :])) for i in range(len(parts))), 0]
