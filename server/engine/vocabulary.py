"""What the tokens of a tokenizer write, in the form in which grammars read it.

Made of the base's own files, and of what an adapter's requests say of the tokens that it adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llguidance import LLTokenizer

from bases.token_spelling import TokenSpelling
from bases.tokenizer import load_tokenizer
from server.config import EngineConfig
from server.engine.messages import SpelledToken


class Vocabulary:
    """The tokens of one tokenizer, for matchers of grammars.

    ``end`` is a token id behind all others, by which a matcher says that the output may end: which tokens end an output
    is the request's business. Tokens without a text of their own, as special ones, are in no text.
    """

    def __init__(self, spelt: Sequence[bytes], special: Sequence[int]) -> None:
        self.end = len(spelt)
        self._spelt, self._special = spelt, special
        self.for_matchers = LLTokenizer(_Table([*spelt, b"<end>"], [*special, self.end]), eos_token=self.end)  # type: ignore[arg-type]

    def with_tokens(self, added: Sequence[SpelledToken]) -> Vocabulary:
        """The tokens of an adapter that adds some, perhaps in the place of ids that nothing stands for."""
        spelt = list(self._spelt)
        spelt += [b""] * (max(token.token_id for token in added) + 1 - len(spelt))
        for token in added:
            spelt[token.token_id] = token.spelt
        return Vocabulary(spelt, sorted({*self._special, *(token.token_id for token in added if token.special)}))

    @property
    def mask_words(self) -> int:
        """32-bit words of a mask over all tokens and ``end``."""
        return self.end // 32 + 1


def base_vocabulary(config: EngineConfig) -> Vocabulary:
    """The vocabulary of the base. Takes a while. Raises BaseModelError when its tokenizer cannot be read."""
    backend = load_tokenizer(Path(config.model), config.trust_remote_code).backend_tokenizer
    spelling = TokenSpelling(backend)
    size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    return Vocabulary(spelling.table(size), spelling.special_ids)


class _Table:
    """What LLTokenizer asks of a tokenizer (its TokenizerWrapper). It never has a text to tokenize."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], special: list[int]) -> None:
        self.tokens = tokens
        self.special_token_ids = special
        self.eos_token_id = len(tokens) - 1

    def __call__(self, text: str) -> list[int]:
        raise AssertionError(f"a grammar forces tokens: {text!r}")
