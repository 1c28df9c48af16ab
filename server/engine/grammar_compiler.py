"""Makes matchers of grammars, off the stepping thread, and keeps those that were asked for last.

The API process has checked a grammar before it comes here: what it refuses cannot cost the engine anything. What only
the tokenizer can tell, as that a grammar names a special token that is none, is found here.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait

from llguidance import LLMatcher

from bases.errors import BaseModelError
from server.engine.grammar import OutputGrammar
from server.engine.grammar_limits import LIMITS, deep_threads
from server.engine.messages import SpelledToken
from server.engine.vocabulary import Vocabulary
from server.errors import InvalidRequestError

logger = logging.getLogger(__name__)
MAX_KEPT = 64
MAX_VOCABULARIES = 16

Added = tuple[SpelledToken, ...]
GrammarKey = tuple[str, Added]
"""A grammar and the tokens that its adapter adds to the base's."""


class GrammarCompiler:
    """Matchers by grammar and vocabulary. All but compiling itself is the stepping thread's."""

    def __init__(self, base: Callable[[], Vocabulary]) -> None:
        self._base = base
        self._vocabularies: OrderedDict[Added, Vocabulary] = OrderedDict()  # the compiling thread's
        self._kept: OrderedDict[GrammarKey, tuple[LLMatcher, Vocabulary]] = OrderedDict()
        self._compiling: dict[GrammarKey, Future[tuple[LLMatcher, Vocabulary]]] = {}
        self._thread = deep_threads(1, "grammars")

    @property
    def is_busy(self) -> bool:
        """Whether something is being compiled, or has been and is not settled."""
        return bool(self._compiling)

    def get(self, key: GrammarKey) -> OutputGrammar | None:
        """A new output's grammar; None while it is being compiled: it will be among those that ``ended``.

        Raises InvalidRequestError for a grammar that does not compile.
        """
        if key in self._kept:
            self._kept.move_to_end(key)
            matcher, vocabulary = self._kept[key]
            return OutputGrammar(matcher.deep_copy(), vocabulary)
        if key not in self._compiling:
            self._compiling[key] = self._thread.submit(self._compile, *key)
        if not self._compiling[key].done():
            return None
        matcher, vocabulary = self._compiling[key].result()
        return OutputGrammar(matcher.deep_copy(), vocabulary)

    def ended(self) -> list[GrammarKey]:
        """What has been compiled, or failed to be, and is not settled."""
        return [key for key, future in self._compiling.items() if future.done()] if self._compiling else []

    def settle(self, key: GrammarKey) -> None:
        """All that waited for ``key`` have asked for it again: keep it for others, unless it failed."""
        future = self._compiling.pop(key)
        if future.exception() is None:
            self._kept[key] = future.result()
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    def wait(self, timeout: float) -> None:
        """Sleep until something is compiled, for at most ``timeout`` seconds."""
        wait(self._compiling.values(), timeout=timeout, return_when=FIRST_COMPLETED)

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    # ---- in the thread ----

    def _compile(self, grammar: str, added: Added) -> tuple[LLMatcher, Vocabulary]:
        try:
            vocabulary = self._vocabulary(added)
            matcher = LLMatcher(vocabulary.for_matchers, grammar, log_level=0, limits=LIMITS)
        except BaseModelError as error:
            raise InvalidRequestError("this base has no tokenizer, without which no grammar can be followed") from error
        except BaseException as error:  # what Rust panics with is no Exception
            logger.exception("a grammar could not be compiled")
            raise InvalidRequestError("the grammar cannot be compiled") from error
        if matcher.is_error():
            raise InvalidRequestError(f"the grammar cannot be used: {matcher.get_error()}")
        return matcher, vocabulary

    def _vocabulary(self, added: Added) -> Vocabulary:
        if () not in self._vocabularies:
            self._vocabularies[()] = self._base()
        if added not in self._vocabularies:
            self._vocabularies[added] = self._vocabularies[()].with_tokens(added)
            if len(self._vocabularies) > MAX_VOCABULARIES:
                oldest = next(tokens for tokens in self._vocabularies if tokens)
                del self._vocabularies[oldest]
        return self._vocabularies[added]
