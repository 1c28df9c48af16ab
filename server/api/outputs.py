"""What comes out of a job's sequences: deltas of text, what they add up to, and how many tokens that took."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from bases.token_spelling import INSIDE
from server.engine.messages import TokenLogprobs
from server.text.output.parts import AssistantMessage, Part


class TokenEntry(msgspec.Struct, frozen=True, gc=False):
    """A shown token, where its text begins in the output, and its log-probabilities.

    ``before`` is what it stands behind and ``spelt`` what of the text is its (see ``PlacedToken``); None: what it
    writes there, nothing when it is special.
    """

    offset: int
    logprobs: TokenLogprobs
    before: int | None = INSIDE
    spelt: bytes | None = None


@dataclass(frozen=True)
class TextDelta:
    """What is new of one sequence. ``completion_tokens`` counts from its beginning; ``first`` marks the first delta.

    The first one voids those of the sequence that came before, if any did.

    ``prompt_logprobs`` comes with the first delta, when asked for. ``token_ids`` are those of the output, one that ends
    it included, where they are asked for. ``stop_reason``: the stop string or the client's stop token that ended it.

    ``parts`` are what the text is of a message, where the job's outputs are messages: they may come later than the
    text. ``thought_tokens`` of the completion's are thoughts, as far as is known; ``called``: it has called a tool.
    """

    index: int
    text: str = ""
    tokens: list[TokenEntry] = field(default_factory=list)
    finish_reason: str | None = None
    first: bool = False
    completion_tokens: int = 0
    cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    parts: list[Part] = field(default_factory=list)
    thought_tokens: int = 0
    called: bool = False
    token_ids: list[int] = field(default_factory=list)
    stop_reason: str | int | None = None


@dataclass
class Usage:
    """Token counts of a job, as they grow."""

    prompt_tokens: int
    cached: dict[int, int] = field(default_factory=dict)
    completion: dict[int, int] = field(default_factory=dict)
    thought: dict[int, int] = field(default_factory=dict)

    def add(self, delta: TextDelta, n: int) -> None:
        """Take a delta into account. The cached part of a prompt is counted once, not for each of its ``n``."""
        self.completion[delta.index] = delta.completion_tokens
        self.thought[delta.index] = delta.thought_tokens
        if delta.first and delta.index % n == 0:
            self.cached[delta.index] = delta.cached_tokens

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that were not computed."""
        return sum(self.cached.values())

    def body(self, index: int | None = None, *, begun: bool = True) -> dict[str, object]:
        """OpenAI's usage object; of one sequence when ``index`` is given, of its prompt alone unless ``begun``."""
        completion, thought = (
            sum(counts.values() if index is None else [counts.get(index, 0)]) if begun else 0
            for counts in (self.completion, self.thought)
        )
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": thought},
        }


@dataclass
class Completion:
    """One finished sequence; ``message`` is what its text is, where the job's outputs are messages."""

    index: int
    text: str = ""
    tokens: list[TokenEntry] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    message: AssistantMessage = field(default_factory=AssistantMessage)
    token_ids: list[int] = field(default_factory=list)
    stop_reason: str | int | None = None

    @property
    def called(self) -> bool:
        """Whether it calls tools."""
        return bool(self.message.calls)

    def add(self, delta: TextDelta) -> None:
        """Append a delta; a first one voids what is here."""
        if delta.first:
            self.text, self.tokens, self.prompt_logprobs, self.message = "", [], None, AssistantMessage()
            self.token_ids = []
        self.text += delta.text
        self.tokens += delta.tokens
        self.token_ids += delta.token_ids
        self.stop_reason = delta.stop_reason
        self.message.add(delta.parts)
        self.finish_reason = delta.finish_reason
        self.prompt_logprobs = delta.prompt_logprobs or self.prompt_logprobs
