from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from server.errors import InvalidRequestError
from server.text.grammar_maker import GrammarLimits, GrammarMaker
from server.text.grammars import Form, Kind


@pytest.fixture
def maker() -> Iterator[GrammarMaker]:
    made = GrammarMaker(GrammarLimits(seconds=1.0, max_kept=2))
    yield made
    made.close()


async def test_what_ends_its_process_is_refused_and_the_next_is_made(maker: GrammarMaker) -> None:
    rules = "start: r0\n" + "".join(f'r{i}: r{i + 1} | "x{i}"\n' for i in range(3000)) + 'r3000: "a"'
    with pytest.raises(InvalidRequestError, match="nested too deeply"):
        await maker.make(Form(Kind.GRAMMAR, rules, "grammar"))
    texts = await asyncio.gather(*(maker.make(Form(Kind.CHOICE, [str(i)], "x")) for i in range(4)))
    assert [f'"{i}"' in text for i, text in enumerate(texts)] == [True] * 4
    assert len(maker._kept) == 2
    assert maker._kept_bytes == sum(len(job) + len(text) for job, text in maker._kept.items())
