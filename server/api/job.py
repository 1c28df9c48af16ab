"""What is to be generated: the sequences of one request, and how their tokens become text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from server.adapter_key import AdapterKey
from server.api.beam_search import BeamParams
from server.engine.messages import EngineRequest, SamplingParams, SpelledToken
from server.text.output.parts import MessageParser
from server.text.tokenizer import TextProcessor


@dataclass(frozen=True)
class Prompt:
    """One prompt: its tokens, and its text as the client gave it (None when given as tokens).

    ``echo`` is what of a conversation stands before its answer. With ``embeds``, little-endian float32, that stand in
    their place the tokens mean nothing.
    """

    ids: list[int]
    text: str | None = None
    echo: str = ""
    embeds: bytes = b""

    @property
    def told_ids(self) -> list[int] | None:
        """The tokens, where there are some."""
        return None if self.embeds else self.ids


@dataclass(frozen=True)
class TextOptions:
    """How output tokens become text. ``stop_reasons``: what the client calls the tokens that it lets end an output."""

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    shown: frozenset[int] = frozenset()
    stop_reasons: Mapping[int, int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Telling:
    """What an answer tells beside its text: the ids of all tokens, or those alone for names; the tier of service.

    With ``usage`` every chunk of a stream tells it, whatever the request says.
    """

    token_ids: bool = False
    ids_for_names: bool = False
    service_tier: str | None = None
    usage: bool = False


class Prompted:
    """What is computed of ``prompts``, through ``adapter``."""

    prompts: list[Prompt]
    adapter: AdapterKey | None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(len(prompt.ids) for prompt in self.prompts)

    @property
    def headers(self) -> dict[str, str]:
        """Which exact adapter version answers."""
        return {"x-hotswap-adapter": str(self.adapter)} if self.adapter is not None else {}


@dataclass(frozen=True)
class Job(Prompted):
    """``prompts`` times ``n`` sequences. ``model`` is the name the client used, ``adapter`` what it means.

    ``tokenizer`` is the adapter's. ``tenant``, ``weight`` and ``priority`` are what the engine shares itself out by. It
    ends at ``deadline``, by the event loop's clock. With ``beams`` the ``n`` sequences are searched, not sampled.

    ``started`` is perf_counter's. ``continues``: outputs go on from the prompt's text, and do not begin a text of
    their own. ``prompt_logprobs``: as many likeliest tokens of each of the prompt are told. ``lists_end``: so is the
    token that ends an output, among those of the output. ``make_parser``: outputs are messages, and are taken apart;
    ``lead`` is what may come before the form that they are held to, as ``server.text.grammars.within`` takes it.
    """

    id: str
    created: int
    model: str
    adapter: AdapterKey | None
    fingerprint: str
    prompts: list[Prompt]
    n: int
    sampling: SamplingParams
    tokenizer: TextProcessor
    started: float
    text: TextOptions = field(default_factory=TextOptions)
    echo: bool = False
    cache_salt: str = ""
    continues: bool = True
    prompt_logprobs: int | None = None
    lists_end: bool = False
    make_parser: Callable[[], MessageParser] | None = None
    lead: str = ""
    tells: Telling = field(default_factory=Telling)
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    deadline: float | None = None
    beams: BeamParams | None = None

    def requests(self) -> list[EngineRequest]:
        """One engine request per sequence; sequence i of a prompt has seed + i."""
        added = self._added_tokens()
        return [
            EngineRequest(
                request_id=f"{self.id}-{p * self.n + i}",
                prompt_ids=prompt.ids,
                sampling=msgspec.structs.replace(self.sampling, seed=(self.sampling.seed + i) % 2**64),
                adapter=self.adapter,
                cache_salt=self.cache_salt,
                tenant=self.tenant,
                weight=self.weight,
                priority=self.priority,
                added_tokens=added,
                embeds=prompt.embeds,
                num_embeds=len(prompt.ids) if prompt.embeds else 0,
            )
            for p, prompt in enumerate(self.prompts)
            for i in range(self.n)
        ]

    def _added_tokens(self) -> tuple[SpelledToken, ...]:
        """What the engine has to know of an adapter's tokens to follow a grammar."""
        if not self.sampling.grammar:
            return ()
        text = self.tokenizer
        return tuple(SpelledToken(token.id, text.token_bytes(token.id), token.special) for token in text.added)
