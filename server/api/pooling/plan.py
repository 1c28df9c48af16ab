"""How texts become vectors: as their request says, else as the adapter or the base was trained, else as is usual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from adapters.package.head import PackageHead
from adapters.package.manifest import PooledRef, PoolingName
from adapters.package.sentence_model import SentenceModel
from adapters.quoting import quote
from server.adapter_key import AdapterKey
from server.api.context import ServerContext
from server.api.context_budget import ContextBudget
from server.api.job import Prompt
from server.api.pooling.dense_layers import DenseLayers
from server.api.pooling.job import encoded, input_prompts
from server.api.pooling.wire import VectorBody
from server.engine.messages import Pooling, PoolingParams
from server.errors import InvalidRequestError

_OF_COHERE = {"search_query": "query", "search_document": "document"}  # by what sentence-transformers calls them


@dataclass(frozen=True)
class VectorPlan:
    """What the engine is asked for, and the ``layers`` that it goes through here. Answers have ``width`` numbers.

    The tokens of what stands before a text are not pooled unless ``pools_prompts``. With ``in_conversations`` texts are
    read as what a user says.
    """

    params: PoolingParams
    width: int
    layers: DenseLayers | None = None
    pools_prompts: bool = True
    in_conversations: bool = False

    async def input_prompts(self, body: VectorBody, before: str, budget: ContextBudget) -> list[Prompt]:
        """The prompts of ``body``, whose texts have ``before`` before them. Raises InvalidRequestError."""
        if body.messages is not None:
            return await input_prompts(body, budget)
        return await self.prompts(body.inputs, before, budget, special=body.add_special_tokens is not False)

    async def prompts(
        self, inputs: Sequence[str | list[int]], before: str, budget: ContextBudget, *, special: bool
    ) -> list[Prompt]:
        """``inputs``, texts or token ids, as prompts; texts have ``before`` before them. Raises InvalidRequestError."""
        if self.in_conversations:
            said = [await _in_conversation(one, before, budget) if isinstance(one, str) else one for one in inputs]
            return await encoded(said, budget, special=False)
        return await encoded([before + one if isinstance(one, str) else one for one in inputs], budget, special=special)

    async def behind(self, before: str, prompts: Sequence[Prompt], budget: ContextBudget) -> PoolingParams:
        """``params`` for ``prompts`` that begin with the text ``before``. Raises InvalidRequestError."""
        if self.pools_prompts or not before:
            return self.params
        ids = await budget.text.encode_off_loop(before, add_special_tokens=True)
        skip = len(ids) - bool(ids and budget.text.spelling.is_special(ids[-1]))  # behind the text, it is another's
        if any(len(prompt.ids) <= skip for prompt in prompts):
            raise InvalidRequestError(
                f"{budget.field_name}: one is cut until nothing is left of it behind its prompt, whose {skip} tokens "
                "are no part of its vector; let more of it be kept, or name another `prompt_name`",
                param=budget.field_name,
            )
        return msgspec.structs.replace(self.params, skip=skip)

    @property
    def of_tokens(self) -> VectorPlan:
        """The same of every token."""
        return replace(self, params=msgspec.structs.replace(self.params, pooling=Pooling.ALL))


async def _in_conversation(text: str, before: str, budget: ContextBudget) -> str:
    messages = [{"role": "system", "content": before}] if before else []
    messages.append({"role": "user", "content": text})
    return await budget.text.render_chat_off_loop(messages, {"add_generation_prompt": False})


@dataclass(frozen=True)
class _Trained:
    """What vectors are made by: a manifest's or sentence-transformers' words, and where the latter stand."""

    pooled: PooledRef
    model: SentenceModel | None = None
    directory: Path = Path()


def _trained(context: ServerContext, adapter: AdapterKey | None) -> _Trained:
    version = context.registry.leased(adapter) if adapter is not None else None
    if version is not None and version.manifest is not None and version.manifest.pooled is not None:
        return _Trained(version.manifest.pooled)
    if version is not None and version.sentence_model is not None:
        return _Trained(version.sentence_model.pooled, version.sentence_model, version.path)
    if context.sentence_model is None or (version is not None and version.head is not None):
        return _Trained(PooledRef())
    return _Trained(context.sentence_model.pooled, context.sentence_model, context.base_dir)


def _served(trained: _Trained, size: int) -> PooledRef:
    """How states of ``size`` are pooled. Raises InvalidRequestError for a model whose vectors are not served."""
    model = trained.model
    problem = "" if model is None else model.problem
    if model is not None and model.layers and model.layers[0].in_features != size:
        problem = f"its Dense reads {model.layers[0].in_features} features, and states of this base have {size}"
    if problem:
        raise InvalidRequestError(
            f"this model's vectors are not served as sentence-transformers makes them: {problem}; ask /v1/embeddings "
            "with `pooling` for vectors of its hidden states, or name another model",
            param="model",
        )
    return trained.pooled


def head_params(
    context: ServerContext, adapter: AdapterKey | None, head: PackageHead, *, activated: bool
) -> PoolingParams:
    """How hidden states go through ``head``."""
    pooled = _trained(context, adapter).pooled
    return PoolingParams(
        pooling=Pooling.ALL if head.of_tokens else Pooling(pooled.pooling or Pooling.LAST),
        through_head=True,
        activation=head.activation if activated else "",
    )


def embedding_plan(
    context: ServerContext, body: VectorBody, adapter: AdapterKey | None, size: int, *, plain: bool = False
) -> VectorPlan:
    """How hidden states of ``size`` become embeddings; with ``plain`` nothing is made of them.

    Raises InvalidRequestError.
    """
    normalize = body.normalize if body.normalize is not None else body.use_activation
    pooling = body.pooling or ("last" if plain else None)
    plan = usual_plan(context, adapter, size, body.dimensions, pooling=pooling, normalize=normalize)
    return check_dimensions(plan, body.dimensions, "dimensions")


def check_dimensions(plan: VectorPlan, asked: int | None, param: str) -> VectorPlan:
    """``plan``, if its vectors have as many numbers as are ``asked`` for. Raises InvalidRequestError."""
    if asked is not None and asked > plan.width:
        raise InvalidRequestError(
            f"{param} is {asked}, and the vectors of this model have {plan.width}; ask for no more", param=param
        )
    return replace(plan, width=asked or plan.width)


def usual_plan(
    context: ServerContext,
    adapter: AdapterKey | None,
    size: int,
    dimensions: int | None = None,
    *,
    pooling: PoolingName | None = None,
    normalize: bool | None = None,
) -> VectorPlan:
    """How hidden states of ``size`` become vectors of so many ``dimensions``, where nothing else is said of them.

    Those that are pooled by a ``pooling`` of the request's own go through no layers. Raises InvalidRequestError.
    """
    trained = _trained(context, adapter)
    pooled = trained.pooled if pooling is not None else _served(trained, size)
    params = PoolingParams(
        pooling=Pooling(pooling or pooled.pooling or Pooling.LAST),
        dimensions=dimensions or 0,
        normalize=pooled.normalize if normalize is None else normalize,
    )
    model = trained.model
    if model is None:
        return VectorPlan(params, size)
    plan = VectorPlan(params, size, None, model.pools_prompts, model.in_conversations)
    if not model.layers or pooling is not None:
        return plan
    layers = DenseLayers(model.layers, trained.directory, params.dimensions, params.normalize)
    return replace(plan, params=layers.before(params), width=model.layers[-1].out_features, layers=layers)


def prompt_of(context: ServerContext, body: VectorBody, adapter: AdapterKey | None) -> str:
    """What goes before each text of ``body``. Raises InvalidRequestError where there is no prompt of that name."""
    if body.prompt_name is None:
        return usual_prompt(context, adapter) if body.is_text else ""
    prompts = _prompts(context, adapter)
    if body.prompt_name and body.prompt_name not in prompts:
        has = f"there are {', '.join(map(quote, sorted(prompts)))}" if prompts else "this model has none"
        raise InvalidRequestError(
            f"there is no prompt {quote(body.prompt_name)}: {has}; put what you mean before each text yourself",
            param="prompt_name",
        )
    return prompts.get(body.prompt_name, "")


def usual_prompt(context: ServerContext, adapter: AdapterKey | None, use: str | None = None) -> str:
    """What goes before a text of such a use, where there is a prompt for that; else before any."""
    prompts, model = _prompts(context, adapter), _trained(context, adapter).model
    for name in (use, _OF_COHERE.get(use or "")):
        if name in prompts:
            return prompts[name]
    return "" if model is None else model.prompts.get(model.default_prompt or "", "")


def _prompts(context: ServerContext, adapter: AdapterKey | None) -> dict[str, str]:
    """Those that may be named: of what makes the vectors, else of the base."""
    model = _trained(context, adapter).model or context.sentence_model
    return {} if model is None else model.prompts
