"""One generation request after every check: what to send to the engine, and how to turn its tokens into text."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from server.engine.messages import EngineRequest, SamplingParams
from server.registry import AdapterKey
from server.text import TextProcessor


@dataclass(frozen=True)
class Prompt:
    """One prompt: its tokens, and its text as the client gave it (empty when given as tokens)."""

    ids: list[int]
    text: str = ""


@dataclass(frozen=True)
class TextOptions:
    """How output tokens become text."""

    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True


@dataclass(frozen=True)
class Job:
    """``prompts`` times ``n`` sequences. ``model`` is the name the client used, ``adapter`` what it means.

    ``tokenizer`` is the adapter's.

    ``started`` is perf_counter's. ``continues``: outputs go on from the prompt's text, and do not begin a text of
    their own.
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

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(len(prompt.ids) for prompt in self.prompts)

    @property
    def headers(self) -> dict[str, str]:
        """Which exact adapter version answers."""
        return {"x-hotswap-adapter": str(self.adapter)} if self.adapter is not None else {}

    def requests(self) -> list[EngineRequest]:
        """One engine request per sequence; sequence i of a prompt has seed + i."""
        return [
            EngineRequest(
                request_id=f"{self.id}-{p * self.n + i}",
                prompt_ids=prompt.ids,
                sampling=msgspec.structs.replace(self.sampling, seed=(self.sampling.seed + i) % 2**64),
                adapter=self.adapter,
                cache_salt=self.cache_salt,
            )
            for p, prompt in enumerate(self.prompts)
            for i in range(self.n)
        ]
