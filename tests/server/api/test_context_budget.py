"""How much of a text is looked at before it is known not to fit."""

from __future__ import annotations

import pytest

from adapters.package.added_tokens import AddedToken
from server.api.context_budget import CHARS_A_TOKEN, SEAM_TOKENS, ContextBudget
from server.errors import InvalidRequestError
from server.text.tokenizer import TextProcessor
from tests.factory import VOCAB_SIZE, make_tokenizer

LIMIT = 1000
LONG = "<" + "x" * 1000 + ">"  # with a token as long as this, the length of a text alone says little


@pytest.fixture
def budget() -> ContextBudget:
    text = TextProcessor(make_tokenizer()).with_tokens((AddedToken(259, LONG),))
    return ContextBudget(LIMIT, 0, "prompt", text, VOCAB_SIZE)


async def test_what_can_never_fit_is_known_by_its_beginning(budget: ContextBudget) -> None:
    beginning = LIMIT * CHARS_A_TOKEN + SEAM_TOKENS
    with pytest.raises(InvalidRequestError, match=f"in at least {beginning - SEAM_TOKENS} tokens") as refused:
        await budget.encode("x" * 500_000, add_special_tokens=False)
    assert refused.value.code == "context_length_exceeded"


async def test_what_fits_after_all_is_encoded_whole(budget: ContextBudget) -> None:
    dense = LONG * 500
    prompt = await budget.encode(dense, add_special_tokens=False)
    assert prompt.ids == [259] * 500
    assert prompt.text == dense
