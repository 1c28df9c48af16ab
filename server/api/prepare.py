"""Checked bodies to jobs: everything that depends on the base, the adapter or the configuration.

A job says what to send to the engine, and how to turn its tokens into text. Nothing here has effects; the caller holds
a lease on the adapter version meanwhile, and while the job runs.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import msgspec

from adapters.quoting import quote
from server.adapter_key import AdapterKey
from server.api.beam_search import BeamParams
from server.api.context import ServerContext
from server.api.context_budget import ContextBudget, budget_for
from server.api.conversation import Reading, reading_of, refuse_tools
from server.api.job import Job, Prompt, Telling, TextOptions
from server.api.prompt_embeds import read_embeds
from server.api.wire import ChatBatchBody, ChatCompletionBody, CompletionBody, ModelBody, SamplingBody
from server.catalog.registry import Registry
from server.engine.messages import SamplingParams
from server.errors import InvalidRequestError
from server.text.infilling import Infilling, encode_behind, find_infilling
from server.text.template_form import content_text
from server.text.tokenizer import TextProcessor


def asked_model(registry: Registry, body: ModelBody) -> str:
    """The name of the model that ``body`` asks for, to be resolved.

    Raises InvalidRequestError when it names two, UnknownModelError.
    """
    named = body.named(registry.base_name)
    if body.adapter is not None and registry.resolve(body.adapter) != registry.resolve(named):
        field_name = "adapters" if body.adapters else "adapter_id" if body.adapter_id else "lora_path"
        raise InvalidRequestError(
            f"{field_name} is {quote(body.adapter)}, but model is {quote(named)}; leave one of them out",
            param=field_name,
        )
    return named


Asked = TypeVar("Asked", bound=SamplingBody)
COMPLETION_TOKENS = 16  # OpenAI's default of completions


async def chat_job(context: ServerContext, body: ChatCompletionBody, adapter: AdapterKey | None, started: float) -> Job:
    """The job of a chat completion. Raises InvalidRequestError."""
    body = _checked(context, body, adapter, prompts=1)
    field = "messages" if body.prompt_token_ids is None else "prompt_token_ids"
    budget = budget_for(context, adapter, field).cutting(body, body.max_completion_tokens or body.max_tokens or 1)
    prompt, text = await _chat_prompt(context, body, budget)
    reading = Reading() if text is None else await reading_of(context, budget.text, body, text)
    if body.echo and ((last := body.messages[-1]).role == "assistant" or body.continue_final_message):
        prompt = replace(prompt, echo=content_text(last.for_template()["content"] or ""))
    asked = body.max_completion_tokens or body.max_tokens
    budget.check(len(prompt.ids), asked or 1)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sampling = _sampling(body, asked or budget.left(len(prompt.ids)), logprobs, context.end_token_ids(adapter))
    sampling = _with_texts(sampling, budget, body)
    job = _job(context, body, adapter, [prompt], sampling, prefix="chatcmpl", started=started)
    return _read(job, reading)


async def _chat_prompt(
    context: ServerContext, body: ChatCompletionBody, budget: ContextBudget
) -> tuple[Prompt, str | None]:
    """The prompt of a chat, and the text that a template made of it; None for a base that reads no conversation."""
    plain = reads_plain_text(context, budget.text)
    if plain:
        refuse_tools(body)
    if body.prompt_token_ids is not None:
        prompt = _prompt_of_ids(body.prompt_token_ids, budget)
        decode = partial(budget.text.decode, prompt.ids, skip_special_tokens=False)
        return prompt, None if plain else await budget.text.off_loop(len(prompt.ids), decode)
    messages = [message.for_template() for message in body.messages]
    if plain:
        text = last_user_text(messages, body.chat_template_kwargs)
        return await budget.encode(text, add_special_tokens=True), None
    text = await budget.text.render_chat_off_loop(messages, body.chat_template_kwargs)
    return await budget.encode(text, add_special_tokens=False), text


def _read(job: Job, reading: Reading) -> Job:
    """``job``, whose outputs are messages."""
    sampling = msgspec.structs.replace(job.sampling, grammar=reading.grammar)
    text = replace(job.text, shown=reading.shown)
    return replace(job, sampling=sampling, text=text, make_parser=reading.make_parser, lead=reading.lead)


async def chat_batch_job(
    context: ServerContext, body: ChatBatchBody, adapter: AdapterKey | None, started: float
) -> Job:
    """The job of several conversations. Raises InvalidRequestError.

    Unless it is said how long outputs may be, each may be as long as there is room for behind its own prompt.
    """
    body = _checked(context, body, adapter, prompts=len(body.messages))
    jobs = [await chat_job(context, one, adapter, started) for one in body.conversations]
    longest = max((job.sampling for job in jobs), key=lambda sampling: sampling.max_tokens)
    prompts = [prompt for job in jobs for prompt in job.prompts]
    if longest.prompt_logprobs is not None:
        _check_prompt_logprobs(context, body, prompts, longest.prompt_logprobs)
    _check_output_logprobs(context, body, len(prompts), longest)
    sampling = msgspec.structs.replace(longest, seed=jobs[0].sampling.seed)
    return replace(jobs[0], prompts=prompts, sampling=sampling)


def reads_plain_text(context: ServerContext, text: TextProcessor) -> bool:
    """Whether the base is an encoder-decoder without a chat template: it reads a text, not a conversation."""
    return not text.has_chat_template and context.engine.info.is_encoder_decoder


def last_user_text(messages: list[dict[str, Any]], template_kwargs: Mapping[str, Any]) -> str:
    """What a base without a chat template is given of a conversation. Raises InvalidRequestError."""
    if template_kwargs.get("continue_final_message"):
        raise InvalidRequestError(
            "this base has no chat template and reads the last user message, so that no answer can be continued",
            param="continue_final_message",
        )
    for message in reversed(messages):
        if message["role"] == "user":
            return content_text(message["content"])
    raise InvalidRequestError(
        "this base has no chat template and reads the last user message, but there is none", param="messages"
    )


async def completion_job(
    context: ServerContext, body: CompletionBody, adapter: AdapterKey | None, started: float
) -> Job:
    """The job of a completion. Raises InvalidRequestError."""
    body = _checked(context, body, adapter, prompts=len(body.embeds) + len(body.prompts))
    if body.echo and body.logprobs is not None and context.engine.info.is_encoder_decoder:
        raise InvalidRequestError(
            "`echo` with `logprobs` is not possible: the base is an encoder-decoder, which reads the prompt and has no "
            "log-probabilities of its tokens; leave one of them out",
            param="echo",
        )
    budget = budget_for(context, adapter, "prompt").cutting(
        body, COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    )
    special = body.add_special_tokens is not False
    infilling = _infilling(budget) if body.suffix else None
    prompts = [await _embedded(context, given, budget) for given in body.embeds]
    for prompt in body.prompts:
        if infilling is None:
            prompts.append(await _completion_prompt(prompt, budget, special))
        else:
            prompts.append(await _infilled(prompt, budget, infilling, body.suffix or "", special=special))
        await asyncio.sleep(0)  # others have their turn between them
    longest = max(len(prompt.ids) for prompt in prompts)
    budget.check(longest, 1 if body.max_tokens is None else body.max_tokens)
    default = min(COMPLETION_TOKENS, budget.left(longest))
    max_tokens = default if body.max_tokens is None else body.max_tokens
    ends = (*context.end_token_ids(adapter), *(infilling.ends if infilling else ()))
    sampling = _sampling(body, max_tokens, body.logprobs, ends)
    sampling = _with_texts(sampling, budget, body)
    return _job(context, body, adapter, prompts, sampling, prefix="cmpl", started=started, echo=bool(body.echo))


async def _embedded(context: ServerContext, given: str, budget: ContextBudget) -> Prompt:
    """A prompt that is given as embeddings. Raises InvalidRequestError."""
    param, size = "prompt_embeds", context.engine.info.embedding_size
    if not context.config.enable_prompt_embeds:
        raise InvalidRequestError(
            f"{param}: this server takes text and token ids alone, unless its operator allows more "
            "(--enable-prompt-embeds)",
            param=param,
        )
    if not size:
        raise InvalidRequestError(f"{param}: this base reads tokens alone; send `prompt`", param=param)
    count, embeds = await budget.text.off_loop(len(given), partial(read_embeds, given, size, param))
    replace(budget, field_name=param).check(count, 0)
    return Prompt([0] * count, embeds=embeds)


def _infilling(budget: ContextBudget) -> Infilling:
    """How the middle between prompt and suffix is filled in. Raises InvalidRequestError."""
    found = find_infilling(budget.text, budget.vocab_size)
    if found is None:
        raise InvalidRequestError(
            "suffix: the tokenizer of this base has no tokens to fill in the middle with; leave it out", param="suffix"
        )
    return found


async def _infilled(
    prompt: str | list[int], budget: ContextBudget, infilling: Infilling, suffix: str, *, special: bool
) -> Prompt:
    """What stands before and behind the middle, as one prompt. Raises InvalidRequestError."""
    before = Prompt([]) if prompt == "" else await _completion_prompt(prompt, budget, special=False)
    behind = replace(budget, field_name="suffix").cut(
        Prompt(await budget.text.off_loop(len(suffix), partial(encode_behind, budget.text, suffix)))
    )
    begin = budget.text.encode("", add_special_tokens=special)
    return Prompt([*begin, *infilling.ids(before.ids, behind.ids)])


async def _completion_prompt(prompt: str | list[int], budget: ContextBudget, special: bool) -> Prompt:
    if isinstance(prompt, str):
        return await budget.encode(prompt, add_special_tokens=special)
    return _prompt_of_ids(prompt, budget)


def _prompt_of_ids(ids: list[int], budget: ContextBudget) -> Prompt:
    kept = budget.cut(Prompt(ids))
    budget.check(len(kept.ids), 0)
    if not ids:
        raise InvalidRequestError("a prompt of token ids is empty", param=budget.field_name)
    budget.check_known(ids)
    return kept


def check_writes(context: ServerContext, adapter: AdapterKey | None) -> None:
    """Raise InvalidRequestError for an adapter that tells classes, or numbers, and writes no text."""
    if adapter is not None and context.registry.leased(adapter).head is not None:
        raise InvalidRequestError(
            f"{quote(adapter.name)} has a head of its own in the place of the base's and writes no text; ask it at "
            "/v1/classify (/pooling, /v1/score)",
            param="model",
        )


def _checked(context: ServerContext, body: Asked, adapter: AdapterKey | None, *, prompts: int) -> Asked:
    """``body``, whose numbers keep to the caps on what one request fans out to. Raises InvalidRequestError."""
    _check_bounds(context, body, adapter, prompts=prompts)
    return _counted(context, body, adapter)


def _check_bounds(context: ServerContext, body: SamplingBody, adapter: AdapterKey | None, *, prompts: int) -> None:
    check_writes(context, adapter)
    if body.prompt_logprobs is not None and context.engine.info.is_encoder_decoder:
        raise InvalidRequestError(
            "`prompt_logprobs` is not possible: the base is an encoder-decoder, which has no log-probabilities of what "
            "it reads; leave it out",
            param="prompt_logprobs",
        )
    config, vocab_size = context.config, context.vocab_size(adapter)
    sequences = prompts * body.sequences
    if sequences > config.max_sequences_per_request:
        raise InvalidRequestError(
            f"{prompts} prompts times {body.sequences} make {sequences} sequences; "
            f"one request may make {config.max_sequences_per_request}",
            param="n" if prompts == 1 else "prompt",
        )
    if len(body.stops) > config.max_stop_strings:
        raise InvalidRequestError(f"at most {config.max_stop_strings} stop strings are allowed", param="stop")
    for param, ids in (
        ("logit_bias", map(int, body.logit_bias or {})),
        ("stop_token_ids", body.stop_token_ids or []),
        ("allowed_token_ids", body.allowed_token_ids or []),
        ("logprob_token_ids", body.logprob_token_ids or []),
    ):
        wrong = [token_id for token_id in ids if token_id >= vocab_size]
        if wrong:
            message = f"{param}: token id {wrong[0]} is out of vocabulary, which has {vocab_size}"
            raise InvalidRequestError(message, param=param)


_TOLD = ("logprobs", "top_logprobs", "prompt_logprobs")


def _counted(context: ServerContext, body: Asked, adapter: AdapterKey | None) -> Asked:
    """``body`` with the alternatives that it asks for as counts: -1 is all. Raises InvalidRequestError."""
    most, vocab_size = context.config.max_logprobs, context.vocab_size(adapter)
    counts = {name: count for name in _TOLD if type(count := getattr(body, name, None)) is int}
    for name, count in counts.items():
        if most != -1 and not 0 <= count <= most:
            raise InvalidRequestError(f"{name}: must be between 0 and {most} (--max-logprobs)", param=name)
        counts[name] = vocab_size if count == -1 else min(count, vocab_size)
    return body.model_copy(update=counts) if counts else body


def _sampling(body: SamplingBody, max_tokens: int, logprobs: int | None, ends: tuple[int, ...]) -> SamplingParams:
    """Sampling parameters; absent and null fields mean OpenAI's defaults. ``ends`` are the adapter's end tokens."""
    min_tokens = body.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidRequestError(
            f"min_tokens ({min_tokens}) exceeds the {max_tokens} tokens allowed", param="min_tokens"
        )
    echoed = logprobs if isinstance(body, CompletionBody) and body.echo else None
    named = tuple(dict.fromkeys(body.logprob_token_ids or ()))
    of_prompt = [count for count in (echoed, body.prompt_logprobs) if count is not None]
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
        allowed_token_ids=tuple(body.allowed_token_ids or ()),
        stop_token_ids=(*(body.stop_token_ids or ()), *(() if body.ignore_eos else ends)),
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs if not named else len(named) + 1,
        logprob_token_ids=named,
        prompt_logprobs=max(of_prompt, default=None),
        speculation=body.speculation is not False,
    )


def _check_prompt_logprobs(context: ServerContext, body: SamplingBody, prompts: list[Prompt], top: int) -> None:
    """Refuse an answer too large to hold: ``top`` alternatives of each token of the prompts, for each output."""
    asked = sum(len(prompt.ids) for prompt in prompts) * body.sequences * (top + 1)
    if asked > (limit := context.config.max_prompt_logprobs):
        raise InvalidRequestError(
            f"{asked} log-probabilities of prompt tokens asked for; one request may ask for {limit} "
            "(--max-prompt-logprobs): send fewer or shorter prompts, or ask for fewer alternatives",
            param="logprobs" if body.prompt_logprobs is None else "prompt_logprobs",
        )


def _check_output_logprobs(context: ServerContext, body: SamplingBody, prompts: int, sampling: SamplingParams) -> None:
    """Refuse a whole answer too large to hold. A stream passes on what it has."""
    if sampling.logprobs is None or body.stream:
        return
    asked = prompts * body.sequences * sampling.max_tokens * (sampling.logprobs + 1)
    if asked > (limit := context.config.max_answer_logprobs):
        raise InvalidRequestError(
            f"up to {asked} log-probabilities of output tokens asked for; one answer may hold {limit} "
            "(--max-answer-logprobs): give a smaller `max_tokens`, ask for fewer alternatives or outputs, or stream",
            param="logprobs",
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _with_texts(sampling: SamplingParams, budget: ContextBudget, body: SamplingBody) -> SamplingParams:
    """``sampling`` with what depends on the tokenizer: the tokens of bad words, and of stops that no text shows."""
    hidden = () if body.skip_special_tokens is False else map(budget.text.special_token, body.stops)
    stops = tuple(token for token in hidden if token is not None)
    bad_words = _bad_words(budget, body.bad_words or ())
    if not stops and not bad_words:
        return sampling
    return msgspec.structs.replace(sampling, bad_words=bad_words, stop_token_ids=(*sampling.stop_token_ids, *stops))


def _bad_words(budget: ContextBudget, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """The tokens of each word, at the beginning of a text and behind a space."""
    spelled: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip()
        for form in (bare, f" {bare}") if bare else (word,):
            ids = budget.text.encode(form, add_special_tokens=False)
            if not ids:
                raise InvalidRequestError(f"bad_words: {quote(word)} makes no token", param="bad_words")
            if max(ids) < budget.vocab_size:  # others are never generated
                spelled[tuple(ids)] = None
    return tuple(spelled)


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
    if sampling.prompt_logprobs is not None:
        _check_prompt_logprobs(context, body, prompts, sampling.prompt_logprobs)
    _check_output_logprobs(context, body, len(prompts), sampling)
    return Job(
        id=f"{prefix}-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=body.named(context.base_name),
        adapter=adapter,
        fingerprint=system_fingerprint(context, adapter),
        prompts=prompts,
        n=body.sequences,
        beams=_beams(context, body, sampling),
        sampling=sampling,
        tokenizer=context.text_of(adapter),
        started=started,
        text=TextOptions(
            stops=tuple(body.stops),
            include_stop=bool(body.include_stop_str_in_output),
            skip_special_tokens=body.skip_special_tokens is not False,
            stop_reasons=_stop_reasons(context.text_of(adapter), body),
        ),
        tells=Telling(
            token_ids=bool(body.return_token_ids),
            ids_for_names=bool(body.return_tokens_as_token_ids),
            service_tier=None if body.service_tier is None else "default",
            usage=context.config.force_usage,
        ),
        echo=echo,
        cache_salt=body.cache_salt or "",
        continues=not context.engine.info.is_encoder_decoder,
        prompt_logprobs=body.prompt_logprobs,
        lists_end=isinstance(body, CompletionBody),
    )


def _beams(context: ServerContext, body: SamplingBody, sampling: SamplingParams) -> BeamParams | None:
    """How beams are searched, where that is asked for. Raises InvalidRequestError."""
    if not body.use_beam_search:
        return None
    if context.engine.info.is_encoder_decoder:
        raise InvalidRequestError(
            "beams are not searched with an encoder-decoder; leave it out", param="use_beam_search"
        )
    if sampling.prompt_logprobs is not None:
        raise InvalidRequestError("`echo` with `logprobs` is not possible with `use_beam_search`", param="echo")
    penalty = _or(body.length_penalty, 1.0)
    return BeamParams(body.sequences, body.n or 1, penalty, early_stopping=bool(body.early_stopping))


def _stop_reasons(text: TextProcessor, body: SamplingBody) -> dict[int, int | str]:
    named: dict[int, int | str] = {token: token for token in body.stop_token_ids or ()}
    named.update((token, stop) for stop in body.stops if (token := text.special_token(stop)) is not None)
    return named


def system_fingerprint(context: ServerContext, adapter: AdapterKey | None) -> str:
    """OpenAI's system_fingerprint: the base's content, and the exact adapter version."""
    base = f"fp_{context.engine.info.base_fingerprint[:12]}"
    return base if adapter is None else f"{base}:{adapter}"
