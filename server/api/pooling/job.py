"""What a request for pooled outputs has the engine do: checked bodies to prompts and parameters. Without effects."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from server.adapter_key import AdapterKey
from server.api.context import ServerContext
from server.api.context_budget import ContextBudget, budget_for
from server.api.job import Prompt, Prompted
from server.api.pooling.dense_layers import DenseLayers
from server.api.pooling.wire import InputBody, PooledBody
from server.engine.messages import EngineRequest, PoolingParams, SamplingParams
from server.errors import InvalidRequestError

_NO_OUTPUT = SamplingParams(max_tokens=0)


@dataclass(frozen=True)
class PooledJob(Prompted):
    """``prompts``, each of which makes a vector, or one for each token; ``model`` is the name the client used.

    What the engine makes of each goes through the ``layers``, if there are any. ``tenant``, ``weight``, ``priority``
    and ``deadline`` as in ``server.api.job.Job``.
    """

    id: str
    created: int
    model: str
    adapter: AdapterKey | None
    prompts: list[Prompt]
    pooling: PoolingParams
    started: float
    layers: DenseLayers | None = None
    cache_salt: str = ""
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    deadline: float | None = None

    def requests(self) -> Iterator[EngineRequest]:
        """One for each prompt, in their order."""
        for number, prompt in enumerate(self.prompts):
            yield EngineRequest(
                request_id=f"{self.id}-{number}",
                prompt_ids=prompt.ids,
                sampling=_NO_OUTPUT,
                adapter=self.adapter,
                cache_salt=self.cache_salt,
                tenant=self.tenant,
                weight=self.weight,
                priority=self.priority,
                pooling=self.pooling,
            )


def make_job(
    context: ServerContext,
    body: PooledBody,
    adapter: AdapterKey | None,
    prompts: list[Prompt],
    pooling: PoolingParams,
    *,
    prefix: str,
    started: float,
    layers: DenseLayers | None = None,
) -> PooledJob:
    """The job of ``prompts``."""
    return PooledJob(
        id=f"{prefix}-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=body.named(context.base_name),
        adapter=adapter,
        prompts=prompts,
        pooling=pooling,
        started=started,
        layers=layers,
        cache_salt=body.cache_salt or "",
    )


def check_served(context: ServerContext) -> int:
    """The size of a hidden state. Raises InvalidRequestError where the base gives none."""
    info = context.engine.info
    if not info.hidden_size:
        kind = "an encoder-decoder" if info.is_encoder_decoder else "computed by code of its own"
        raise InvalidRequestError(
            f"this base is {kind}, and its hidden states are not served; serve a decoder-only base for embeddings, "
            "scores and classes",
            param="model",
        )
    return info.hidden_size


def check_count(context: ServerContext, count: int, numbers: int, param: str) -> None:
    """Refuse more inputs than one request may have, or an answer too large to hold, of ``numbers`` numbers."""
    if count > (limit := context.config.max_pooled_inputs):
        raise InvalidRequestError(
            f"{param}: {count} inputs; one request may have {limit} (--max-pooled-inputs)",
            param=param,
            code="array_above_max_length",
        )
    if numbers > (limit := context.config.max_pooled_numbers):
        raise InvalidRequestError(
            f"{param}: the answer would hold {numbers} numbers; one answer may hold {limit} (--max-pooled-numbers): "
            "send fewer inputs, or ask for fewer `dimensions`",
            param=param,
        )


def budget_of(context: ServerContext, body: PooledBody, adapter: AdapterKey | None, param: str) -> ContextBudget:
    """The positions of one input, of which ``body`` may ask to keep the end, or the beginning."""
    budget = budget_for(context, adapter, param)
    keep = budget.kept(body.truncate_prompt_tokens)
    return replace(budget, keep=keep, keeps_end=body.truncation_side != "right")


async def input_prompts(body: InputBody, budget: ContextBudget) -> list[Prompt]:
    """The prompts of ``body``. Raises InvalidRequestError."""
    if body.messages is not None:
        messages = [message.for_template() for message in body.messages]
        settings = {"add_generation_prompt": False, **body.chat_template_kwargs}  # it is read, not gone on with
        text = await budget.text.render_chat_off_loop(messages, settings)
        return [_checked(budget, await budget.encode(text, add_special_tokens=bool(body.add_special_tokens)))]
    return await encoded(body.inputs, budget, special=body.add_special_tokens is not False)


async def encoded(inputs: Sequence[str | list[int]], budget: ContextBudget, *, special: bool) -> list[Prompt]:
    """``inputs``, texts or token ids, as prompts; others have their turn between them. Raises InvalidRequestError."""
    prompts = []
    for given in inputs:
        if isinstance(given, str):
            prompts.append(_checked(budget, await budget.encode_text(given, add_special_tokens=special)))
        else:
            budget.check_known(given)
            prompts.append(_checked(budget, budget.cut(Prompt(given))))
        await asyncio.sleep(0)
    return prompts


def _checked(budget: ContextBudget, prompt: Prompt) -> Prompt:
    budget.check(len(prompt.ids), 0)
    return prompt


async def encoded_pairs(
    firsts: Sequence[str], seconds: Sequence[str], budget: ContextBudget, *, special: bool
) -> list[Prompt]:
    """Each two texts as one prompt, as the tokenizer joins pairs. Raises InvalidRequestError."""
    return [
        await _encoded_pair(one, other, budget, special=special) for one, other in zip(firsts, seconds, strict=True)
    ]


async def _encoded_pair(first: str, second: str, budget: ContextBudget, *, special: bool) -> Prompt:
    budget.check(budget.text.fewest_tokens(first) + budget.text.fewest_tokens(second), 0, at_least=True)
    if budget.keep:
        prompt = await budget.encode_cut(first, second, add_special_tokens=special)
    else:
        prompt = Prompt(await budget.text.encode_pair_off_loop(first, second, add_special_tokens=special))
    await asyncio.sleep(0)
    budget.check_known(prompt.ids)
    return _checked(budget, prompt)
