"""Checked bodies to jobs: everything that depends on the base, the adapter or the configuration.

A job says what to send to the engine, and how to turn its tokens into text. Nothing here has effects; the caller holds
a lease on the adapter version meanwhile, and while the job runs.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import msgspec

from server.adapter_key import AdapterKey
from server.api.context import ServerContext
from server.api.wire import ChatCompletionBody, CompletionBody, SamplingBody
from server.engine.messages import EngineRequest, SamplingParams
from server.errors import InvalidRequestError
from server.text.tokenizer import TextProcessor


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


COMPLETION_TOKENS = 16  # OpenAI's default of completions
MAX_LENGTH_CODE = "context_length_exceeded"
CHARS_A_TOKEN = 16  # hardly a text has more
SEAM_TOKENS = 64  # at most so many are others where a text is cut


@dataclass(frozen=True)
class ContextBudget:
    """How many positions a sequence has: ``limit`` in all, ``virtual`` of them the adapter's own; and what goes there.

    ``text`` is the adapter's tokenizer, ``vocab_size`` the token ids it knows.
    """

    limit: int
    virtual: int
    field_name: str  # what the client called its input
    text: TextProcessor
    vocab_size: int

    async def encode(self, text: str, *, add_special_tokens: bool) -> Prompt:
        """The tokens of ``text``. Raises InvalidRequestError when they do not fit, or are none."""
        await self._refuse_hopeless(text)
        ids = await self.text.encode_off_loop(text, add_special_tokens=add_special_tokens)
        if not ids:
            if self.text.bos_token_id is None:
                raise InvalidRequestError(f"the {self.field_name} holds no tokens", param=self.field_name)
            ids = [self.text.bos_token_id]
        self.check_known(ids)
        return Prompt(ids, text)

    async def _refuse_hopeless(self, text: str) -> None:
        """Spare the work on a text that can never fit: what its beginning alone comes to says so."""
        self.check(self.text.fewest_tokens(text), 0, at_least=True)
        if len(text) > (enough := self.limit * CHARS_A_TOKEN + SEAM_TOKENS):
            ids = await self.text.encode_off_loop(text[:enough], add_special_tokens=False)
            self.check(len(ids) - SEAM_TOKENS, 0, at_least=True)

    def check_known(self, ids: list[int]) -> None:
        """Raise InvalidRequestError for a token that the adapter does not know."""
        if (highest := max(ids)) >= self.vocab_size:
            message = f"{self.field_name}: token id {highest} is not in the vocabulary of {self.vocab_size}"
            raise InvalidRequestError(message, param=self.field_name)

    def check(self, prompt_tokens: int, completion_tokens: int, *, at_least: bool = False) -> None:
        """Raise InvalidRequestError, in OpenAI's words, when a prompt and its completion do not fit."""
        need = 1 if completion_tokens else 0  # a completion of one token must fit, a scored prompt may fill all
        if prompt_tokens + self.virtual + need > self.limit:
            count = f"at least {prompt_tokens}" if at_least else str(prompt_tokens)
            raise self._too_long(
                f"your {self.field_name} resulted in {count} tokens{self._of_adapter()}", self.field_name
            )
        if prompt_tokens + self.virtual + completion_tokens > self.limit:
            total = prompt_tokens + completion_tokens
            raise self._too_long(
                f"you requested {total} tokens ({prompt_tokens} in the {self.field_name}, {completion_tokens} in the "
                f"completion){self._of_adapter()}",
                f"{self.field_name} or completion",
            )

    def left(self, prompt_tokens: int) -> int:
        """Positions for the completion."""
        return self.limit - self.virtual - prompt_tokens

    def _of_adapter(self) -> str:
        return f", and the adapter itself takes {self.virtual}" if self.virtual else ""

    def _too_long(self, what: str, reduce: str) -> InvalidRequestError:
        return InvalidRequestError(
            f"This model's maximum context length is {self.limit} tokens. However, {what}. "
            f"Please reduce the length of the {reduce}.",
            param=self.field_name,
            code=MAX_LENGTH_CODE,
        )


async def chat_job(context: ServerContext, body: ChatCompletionBody, adapter: AdapterKey | None, started: float) -> Job:
    """The job of a chat completion. Raises InvalidRequestError."""
    _check_bounds(context, body, adapter, prompts=1)
    budget = budget_for(context, adapter, "messages")
    messages = [message.for_template() for message in body.messages]
    if reads_plain_text(context):
        prompt = await budget.encode(last_user_text(messages), add_special_tokens=True)
    else:
        text = await context.text.render_chat_off_loop(messages, body.chat_template_kwargs)
        prompt = await budget.encode(text, add_special_tokens=False)
    asked = body.max_completion_tokens or body.max_tokens
    budget.check(len(prompt.ids), asked or 1)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sampling = _sampling(body, asked or budget.left(len(prompt.ids)), logprobs)
    return _job(context, body, adapter, [prompt], sampling, prefix="chatcmpl", started=started)


def reads_plain_text(context: ServerContext) -> bool:
    """Whether the base is an encoder-decoder without a chat template: it reads a text, not a conversation."""
    return context.engine.info.is_encoder_decoder and not context.text.has_chat_template


def last_user_text(messages: list[dict[str, Any]]) -> str:
    """What a base without a chat template is given of a conversation. Raises InvalidRequestError."""
    for message in reversed(messages):
        if message["role"] == "user":
            return str(message["content"])
    raise InvalidRequestError(
        "this base has no chat template and reads the last user message, but there is none", param="messages"
    )


async def completion_job(
    context: ServerContext, body: CompletionBody, adapter: AdapterKey | None, started: float
) -> Job:
    """The job of a completion. Raises InvalidRequestError."""
    _check_bounds(context, body, adapter, prompts=len(body.prompts))
    if body.echo and body.logprobs is not None and context.engine.info.is_encoder_decoder:
        raise InvalidRequestError(
            "`echo` with `logprobs` is not possible: the base is an encoder-decoder, which reads the prompt and has no "
            "log-probabilities of its tokens; leave one of them out",
            param="echo",
        )
    budget = budget_for(context, adapter, "prompt")
    special = body.add_special_tokens is not False
    prompts = []
    for prompt in body.prompts:
        prompts.append(await _completion_prompt(prompt, budget, special))
        await asyncio.sleep(0)  # others have their turn between them
    longest = max(len(prompt.ids) for prompt in prompts)
    budget.check(longest, 1 if body.max_tokens is None else body.max_tokens)
    default = min(COMPLETION_TOKENS, budget.left(longest))
    sampling = _sampling(body, default if body.max_tokens is None else body.max_tokens, body.logprobs)
    return _job(context, body, adapter, prompts, sampling, prefix="cmpl", started=started, echo=bool(body.echo))


def budget_for(context: ServerContext, adapter: AdapterKey | None, field_name: str) -> ContextBudget:
    """The positions of one sequence: what the base allows and the KV cache can hold."""
    info = context.engine.info
    virtual = context.registry.leased(adapter).num_virtual_tokens if adapter else 0
    limit = min(info.max_model_len, info.num_kv_blocks * info.block_size)
    return ContextBudget(limit, virtual, field_name, context.text_of(adapter), context.vocab_size(adapter))


async def _completion_prompt(prompt: str | list[int], budget: ContextBudget, special: bool) -> Prompt:
    if isinstance(prompt, str):
        return await budget.encode(prompt, add_special_tokens=special)
    budget.check(len(prompt), 0)
    if not prompt:
        raise InvalidRequestError("a prompt of token ids is empty", param="prompt")
    budget.check_known(prompt)
    return Prompt(prompt)


def _check_bounds(context: ServerContext, body: SamplingBody, adapter: AdapterKey | None, *, prompts: int) -> None:
    """Caps on what one request fans out to, before any work."""
    config, vocab_size = context.config, context.vocab_size(adapter)
    sequences = prompts * (body.n or 1)
    if sequences > config.max_sequences_per_request:
        raise InvalidRequestError(
            f"{prompts} prompts times n={body.n or 1} make {sequences} sequences; "
            f"one request may make {config.max_sequences_per_request}",
            param="n" if prompts == 1 else "prompt",
        )
    if len(body.stops) > config.max_stop_strings:
        raise InvalidRequestError(f"at most {config.max_stop_strings} stop strings are allowed", param="stop")
    for param, ids in (("logit_bias", map(int, body.logit_bias or {})), ("stop_token_ids", body.stop_token_ids or [])):
        wrong = [token_id for token_id in ids if token_id >= vocab_size]
        if wrong:
            message = f"{param}: token id {wrong[0]} is not in the vocabulary of {vocab_size}"
            raise InvalidRequestError(message, param=param)


def _sampling(body: SamplingBody, max_tokens: int, logprobs: int | None) -> SamplingParams:
    """Sampling parameters; absent and null fields mean OpenAI's defaults."""
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidRequestError(
            f"min_tokens ({min_tokens}) exceeds the {max_tokens} tokens allowed", param="min_tokens"
        )
    echoed = isinstance(body, CompletionBody) and body.echo
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=_or(body.temperature, 1.0),
        top_p=_or(body.top_p, 1.0),
        top_k=max(body.top_k or 0, 0),  # -1 is others' way to write 0
        min_p=body.min_p or 0.0,
        seed=(secrets.randbits(63) if body.seed is None else body.seed) % 2**64,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=logprobs if echoed else None,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _job(
    context: ServerContext,
    body: SamplingBody,
    adapter: AdapterKey | None,
    prompts: list[Prompt],
    sampling: SamplingParams,
    *,
    prefix: str,
    started: float,
    echo: bool = False,
) -> Job:
    return Job(
        id=f"{prefix}-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=body.model,
        adapter=adapter,
        fingerprint=system_fingerprint(context, adapter),
        prompts=prompts,
        n=body.n or 1,
        sampling=sampling,
        tokenizer=context.text_of(adapter),
        started=started,
        text=TextOptions(
            stops=tuple(body.stops),
            include_stop=bool(body.include_stop_str_in_output),
            skip_special_tokens=body.skip_special_tokens is not False,
        ),
        echo=echo,
        cache_salt=body.cache_salt or "",
        continues=not context.engine.info.is_encoder_decoder,
    )


def system_fingerprint(context: ServerContext, adapter: AdapterKey | None) -> str:
    """OpenAI's system_fingerprint: the base's content, and the exact adapter version."""
    base = f"fp_{context.engine.info.base_fingerprint[:12]}"
    return base if adapter is None else f"{base}:{adapter}"
