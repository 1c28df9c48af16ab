"""One request inside the engine: its tokens, what of them is computed, where its KV lies, where its adapter acts.

Knows neither the other requests nor the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from server.adapter_key import AdapterKey
from server.engine.grammar import OutputGrammar
from server.engine.messages import EngineRequest, FinishReason, SamplingParams, SpelledToken
from server.engine.pooling import PooledPrompt
from server.engine.prompt_lookup import PromptLookup
from server.model.inputs import NEVER, VIRTUAL, Embeds


def activation_start(prompt_ids: Sequence[int], invocation_tokens: Sequence[int]) -> int:
    """The position in the prompt from which on an adapter acts.

    Activated LoRA (Greenewald et al., 2025, https://arxiv.org/abs/2504.12397): where the last of its invocations
    begins, ``NEVER`` when the prompt has none (outputs do not count, as in peft). 0 for adapters without invocation.
    """
    wanted = list(invocation_tokens)
    if not wanted:
        return 0
    for start in range(len(prompt_ids) - len(wanted), -1, -1):
        if prompt_ids[start] == wanted[0] and list(prompt_ids[start : start + len(wanted)]) == wanted:
            return start
    return NEVER


class RequestStatus(Enum):
    """Where a request is. BLOCKED: its adapter is still being loaded, or its grammar compiled."""

    BLOCKED = auto()
    WAITING = auto()
    RUNNING = auto()
    PREEMPTED = auto()
    FINISHED = auto()


class TokenHistory:
    """The distinct tokens of a sequence and how often each was generated: what penalties look at.

    Arrays, for a step reads all of them, of up to a whole context of tokens for each sequence.
    """

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._index = {token: i for i, token in enumerate(dict.fromkeys(prompt_ids))}
        self._size = len(self._index)
        self._tokens = np.fromiter(self._index, dtype=np.int64)
        self._counts = np.zeros(self._size, dtype=np.int64)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """All tokens, in the order in which they occurred first."""
        return self._tokens[: self._size]

    @property
    def output_counts(self) -> NDArray[np.int64]:
        """How often each of ``tokens`` was generated."""
        return self._counts[: self._size]

    def add(self, token: int) -> None:
        """Count one generated token."""
        i = self._index.setdefault(token, self._size)
        if i == self._size:
            if i == len(self._tokens):
                self._tokens = np.concatenate([self._tokens, np.zeros(i + 16, dtype=np.int64)])
                self._counts = np.concatenate([self._counts, np.zeros(i + 16, dtype=np.int64)])
            self._tokens[i] = token
            self._size += 1
        self._counts[i] += 1


class TokenBias:
    """What is added to the logits of some tokens: the same for each step."""

    def __init__(self, bias: Mapping[int, float]) -> None:
        self.tokens = np.fromiter(bias, dtype=np.int64)
        self.values = np.fromiter(bias.values(), dtype=np.float32)


class BadWords:
    """Token sequences that must not be generated, indexed so that a step looks only at those that may end with it."""

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        self._single = [word[0] for word in words if len(word) == 1]
        self._longer: dict[int, list[list[int]]] = {}  # by the last token but one
        for word in words:
            if len(word) > 1:
                self._longer.setdefault(word[-2], []).append(list(word))

    def last_tokens(self, token_ids: Sequence[int], num_outputs: int) -> list[int]:
        """The tokens that would complete a word. Only the last ``num_outputs`` of ``token_ids`` count, the output."""
        candidates = self._longer.get(token_ids[-1], ()) if num_outputs else ()
        longer = [w[-1] for w in candidates if len(w) - 1 <= num_outputs and token_ids[1 - len(w) :] == w[:-1]]
        return self._single + longer


@dataclass(eq=False)
class Request:
    """The state of one request.

    ``token_ids`` is the whole sequence: the adapter's virtual tokens, the prompt, the outputs. With an encoder the
    prompt is what it reads, and the decoder's ``num_start_tokens`` follow before the outputs. Its first
    ``num_computed_tokens`` have their KV in ``block_table``; the first ``num_published_blocks`` of those blocks need
    no publishing in the prefix cache (any more). ``arrival`` numbers the requests of an engine. The adapter acts from
    position ``activate_from`` on. ``draft`` are tokens guessed to follow ``token_ids``, of the next step alone.
    Of its prompt ``num_charged_tokens`` need not be paid for (any more). While it is BLOCKED it ``awaits`` its adapter,
    or that its ``grammar`` is compiled.
    ``embeds`` stand in the place of the first ``num_embeds`` tokens of the prompt, which are none that anybody sees.
    ``last_step`` is the number of the step that computed it last. It ``is_overdue`` where it was let in because its
    like had waited too long, or goes on because it had; nobody's turn ends it then. When it last lost its place it had
    ``num_kept_tokens`` outputs.
    """

    request_id: str
    adapter: AdapterKey | None
    sampling: SamplingParams
    prompt_ids: list[int]
    cache_salt: str
    arrival: int
    arrived_at: float
    stop_ids: frozenset[int]
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    is_overdue: bool = False
    num_kept_tokens: int | None = None
    last_step: int = 0
    num_charged_tokens: int = 0
    status: RequestStatus = RequestStatus.BLOCKED
    num_virtual_tokens: int = 0
    activate_from: int = 0
    num_start_tokens: int = 0
    max_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    block_table: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    num_published_blocks: int = 0
    scheduled_at: float | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_prompt_logprobs: int = 1  # of prompt tokens told, or, of the first, known to have none
    history: TokenHistory | None = None
    bias: TokenBias | None = None
    allowed: NDArray[np.int64] | None = None
    bad_words: BadWords | None = None
    pooled: PooledPrompt | None = None
    embeds: bytes = b""
    num_embeds: int = 0
    draft: list[int] = field(default_factory=list)
    lookup: PromptLookup | None = None
    added_tokens: tuple[SpelledToken, ...] = ()
    grammar: OutputGrammar | None = None
    awaits: Hashable = None

    @classmethod
    def make(
        cls, message: EngineRequest, *, arrival: int = 0, now: float = 0.0, eos_token_ids: Sequence[int] = ()
    ) -> Request:
        """The state of a request that just arrived."""
        sampling = message.sampling
        penalized = (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) != (0, 0, 1)
        return cls(
            request_id=message.request_id,
            adapter=message.adapter,
            sampling=sampling,
            prompt_ids=message.prompt_ids,
            cache_salt=_salt_of(message),
            arrival=arrival,
            arrived_at=now,
            stop_ids=frozenset(sampling.stop_token_ids) | frozenset(() if sampling.ignore_eos else eos_token_ids),
            tenant=message.tenant,
            weight=message.weight,
            priority=message.priority,
            added_tokens=message.added_tokens,
            history=TokenHistory(message.prompt_ids[message.num_embeds :]) if penalized else None,
            bias=TokenBias(sampling.logit_bias) if sampling.logit_bias else None,
            allowed=np.unique(sampling.allowed_token_ids).astype(np.int64) if sampling.allowed_token_ids else None,
            bad_words=BadWords(sampling.bad_words) if sampling.bad_words else None,
            pooled=PooledPrompt(message.pooling) if message.pooling is not None else None,
            embeds=message.embeds,
            num_embeds=message.num_embeds,
        )

    def embeds_between(self, start: int, stop: int) -> Embeds | None:
        """Those for the positions ``start .. stop`` of the sequence."""
        first = self.num_virtual_tokens
        begin, end = max(start, first) - first, min(stop, first + self.num_embeds) - first
        if begin >= end:
            return None
        row = len(self.embeds) // self.num_embeds
        return Embeds(first + begin - start, end - begin, self.embeds[begin * row : end * row])

    def attach(self, num_virtual_tokens: int, max_model_len: int, start_ids: Sequence[int] = ()) -> None:
        """Lay out the sequence, now that the adapter's virtual tokens are known.

        Start tokens do not count as positions: the last output, which is never computed, makes room for one.
        """
        assert not self.token_ids
        assert len(start_ids) <= 1
        self.num_virtual_tokens, self.num_start_tokens = num_virtual_tokens, len(start_ids)
        wanted = self.sampling.max_tokens if self.pooled is None else 0
        self.max_tokens = min(wanted, max_model_len - num_virtual_tokens - len(self.prompt_ids))
        self.token_ids = [*[VIRTUAL] * num_virtual_tokens, *self.prompt_ids, *start_ids]
        if self.pooled is not None:
            self.pooled.place(num_virtual_tokens, num_virtual_tokens + len(self.prompt_ids))
        if start_ids and self.history is not None:  # penalties look at what the decoder sees
            self.history = TokenHistory(start_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens before the first output, virtual ones and the decoder's start included."""
        return self.num_virtual_tokens + len(self.prompt_ids) + self.num_start_tokens

    @property
    def decoder_start(self) -> int:
        """Where the decoder's tokens begin behind the encoder's; 0 without an encoder."""
        return self.num_virtual_tokens + len(self.prompt_ids) if self.num_start_tokens else 0

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_set_back(self) -> bool:
        """Whether it has lost its place, and generated nothing since."""
        return self.num_kept_tokens == self.num_output_tokens

    @property
    def num_pending_tokens(self) -> int:
        """Tokens still to compute before the next one can be sampled."""
        return len(self.token_ids) - self.num_computed_tokens

    def look_up(self) -> PromptLookup:
        """What is known of how the sequence may go on."""
        if self.lookup is None:
            self.lookup = PromptLookup(self.token_ids, self.num_virtual_tokens + self.num_embeds)
        self.lookup.read()
        return self.lookup

    @property
    def num_tokens_with_draft(self) -> int:
        """Tokens of the sequence with its draft."""
        return len(self.token_ids) + len(self.draft)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether log-probabilities of prompt tokens are still missing."""
        return self.sampling.prompt_logprobs is not None and self.num_prompt_logprobs < len(self.prompt_ids)

    @property
    def reads_whole_prompt(self) -> bool:
        """Whether every token of the prompt has to be computed, for what is wanted lies in no cache."""
        return self.wants_prompt_logprobs or (self.pooled is not None and self.pooled.needs_all)

    @property
    def draft_room(self) -> int:
        """How many tokens may be drafted: one less than are still to come.

        None amid a prompt, and where the choice of a token depends on what was chosen just before it.
        """
        follows_choices = self.history is not None or self.bad_words is not None or self.forbids_stop
        if not self.sampling.speculation or follows_choices or self.num_pending_tokens != 1:
            return 0
        return self.max_tokens - self.num_output_tokens - 1 if self.num_output_tokens else 0

    @property
    def forbids_stop(self) -> bool:
        """Whether the next token must not end the output."""
        return self.num_output_tokens < self.sampling.min_tokens

    @property
    def forbidden_tokens(self) -> list[int]:
        """What must not come next: an end before ``min_tokens``, the last token of a bad word."""
        ends = list(self.stop_ids) if self.forbids_stop else []
        if self.bad_words is None:
            return ends
        return ends + self.bad_words.last_tokens(self.token_ids, self.num_output_tokens)

    @property
    def wants_grammar(self) -> bool:
        """Whether it follows a grammar that has not been compiled yet."""
        return bool(self.sampling.grammar) and self.grammar is None

    def may_follow(self, token: int) -> bool:
        """Whether the grammar, if there is one, goes on with a token that was chosen behind drafted ones."""
        return self.grammar is None or token in self.stop_ids or self.grammar.fitting([token]) == 1

    def append(self, token: int) -> FinishReason | None:
        """Add a sampled token; returns why the request is over, if it is.

        An end that the grammar leaves no choice but to take is one before ``min_tokens``, too.
        """
        may_stop = not self.forbids_stop
        self.token_ids.append(token)
        if self.history is not None:
            self.history.add(token)
        if may_stop and token in self.stop_ids:
            return FinishReason.STOP
        if self.grammar is not None and (not self.grammar.take(token) or self.grammar.is_complete):
            return FinishReason.STOP
        return FinishReason.LENGTH if self.num_output_tokens >= self.max_tokens else None

    def forget_computed(self) -> None:
        """Everything has to be computed again: the blocks are gone."""
        self.block_table = []
        self.num_computed_tokens = 0
        self.num_published_blocks = 0
        self.draft = []
        if self.pooled is not None:
            self.pooled.forget()


def _salt_of(message: EngineRequest) -> str:
    """What the prefix cache tells prompts of equal tokens apart by."""
    if not message.embeds:
        return message.cache_salt
    return f"{message.cache_salt} {hashlib.sha256(message.embeds).hexdigest()}"


def find_problem(request: Request, vocab_size: int, max_model_len: int) -> str | None:
    """Why an attached request can never run, in words for its client; None if it can."""
    if not request.prompt_ids:
        return "The prompt is empty; it needs at least one token."
    sampling = request.sampling
    ids = (*request.prompt_ids, *sampling.logit_bias, *sampling.allowed_token_ids, *chain(*sampling.bad_words))
    if min(ids) < 0 or max(ids) >= vocab_size:
        return f"Token ids in the prompt and in sampling parameters must be between 0 and {vocab_size - 1}."
    if request.num_start_tokens and request.sampling.prompt_logprobs is not None:
        return "The base is an encoder-decoder: it reads a prompt and has no log-probabilities of its tokens."
    if request.pooled is not None and request.num_start_tokens:
        return "The base is an encoder-decoder, of which hidden states are not served."
    if request.max_tokens < min(1, request.sampling.max_tokens if request.pooled is None else 0):
        virtual = f" and its adapter {request.num_virtual_tokens} virtual ones" if request.num_virtual_tokens else ""
        return (
            f"The prompt has {len(request.prompt_ids)} tokens{virtual}, which leaves no room for output within the "
            f"{max_model_len} tokens of the model's context."
        )
    return None
