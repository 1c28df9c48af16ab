"""Runs a decoder whose code came with it by that code alone, one sequence at a time.

For models that attend by themselves, count positions in a way of their own, or need more of a sequence's past than keys
and values, as Yuan2's filters do. What they compute is then what transformers and peft compute with them. A sequence's
tokens are kept where its keys and values would be, and with each step all of them are computed again; only where that
gives the same, the next token goes on from the cache that the model has made of the others.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Cache
from typing_extensions import override

from adapters.base_spec import BaseSpec
from adapters.ops import PrefixKV
from adapters.ops.replace import ReplaceParameters
from bases.compute import dtype_name
from bases.model import LoadedBase, adaptable_modules, layer_count
from bases.own_cache import OWN_ERRORS, CacheForm, cache_form
from server.adapter_key import AdapterKey
from server.errors import EngineStartError
from server.model.adapted_modules import adapt_embedding, adapt_module
from server.model.adapter_pool import AdapterPool
from server.model.architecture_check import check_untested, probe_layers
from server.model.forward import Forward, mask_unknown
from server.model.inputs import ModelInput, SequenceInput
from server.model.kv_cache import KVCache, LayerShape
from server.model.layout import Placed, assemble, slots_of
from server.model.outputs import ModelOutput
from server.model.prepared import ROUNDING, distance
from server.model.sites import BaseSite
from server.model.step import computing, current

logger = logging.getLogger(__name__)
_PROMPT = [5, 23, 7, 101, 64, 11, 42, 3, 77]
_KEPT = 64  # sequences whose caches are held


@dataclass(frozen=True, eq=False)
class _Past:
    """A cache that the model has filled with ``token_ids`` of a sequence of ``adapter``."""

    adapter: AdapterKey | None
    token_ids: list[int]
    cache: Any


class OwnCodeForward(Forward):
    """A decoder run by code that came with it."""

    def __init__(self, base: LoadedBase) -> None:
        self.start_ids: list[int] = []
        self.has_exact_rows = False
        self.hidden_size = self.embedding_size = 0
        self._base, self._num_logits = base, 0
        self._tokens = torch.empty(0, dtype=torch.long)  # by slot of the KV cache
        self._pasts: OrderedDict[int, _Past] = OrderedDict()  # by the slot of the last token
        base.model.config._attn_implementation = "eager"
        self._form = _form(base)
        self._positions = _way_on(base, self._form)

    @override
    def layers(self) -> list[LayerShape]:
        if self._form is None:
            return [LayerShape(1, 1, 2)] * layer_count(self._base.model.config)  # no place for prefixes
        return [LayerShape(self._form.heads, self._form.width, self._form.width)] * self._form.layers

    @override
    def spec(self, spec: BaseSpec) -> BaseSpec:
        filters = {
            f"{name}.{leaf}": tuple(parameter.shape)
            for name, module in self._filters().items()
            for leaf, parameter in module.named_parameters(recurse=False)
        }
        return replace(spec, parameters={**spec.parameters, **filters})

    def _filters(self) -> dict[str, nn.Module]:
        """Convolutions, which are given more than rows; their parameters may be replaced."""
        return {name: one for name, one in self._base.model.named_modules() if isinstance(one, (nn.Conv1d, nn.Conv2d))}

    @override
    def adapt(self, spec: BaseSpec) -> None:
        self._num_logits = spec.linears[spec.head][0]
        for name, module in adaptable_modules(self._base.model).items():
            adapt_module(module, name, is_head=name == spec.head)
        for name, module in self._filters().items():
            _adapt_filter(module, name)
        adapt_embedding(self._base.model.get_input_embeddings(), spec.embedding)
        how = "from the cache that it makes" if self._positions else "all of a sequence with every token"
        logger.info("the base's own code runs, one sequence at a time, %s", how)

    @override
    def execute(self, inputs: ModelInput, cache: KVCache, pool: AdapterPool) -> ModelOutput:
        self._copy_blocks(inputs, cache)
        parts = [self._one(sequence, cache, pool) for sequence in inputs.sequences]
        width = max((part.shape[1] for part in parts), default=0)
        padded = [pad(part, (0, width - part.shape[1]), value=-torch.inf) for part in parts]
        return ModelOutput(torch.cat(padded), [])

    @override
    def warm_up_inputs(self, block_size: int) -> list[ModelInput]:
        return [ModelInput([SequenceInput(None, [0] * min(8, block_size), 0, [0], [0])])]

    def _copy_blocks(self, inputs: ModelInput, cache: KVCache) -> None:
        """As the KV cache does with its own."""
        if not len(self._tokens):
            self._tokens = torch.zeros(cache.num_blocks * cache.block_size, dtype=torch.long)
        blocks = self._tokens.view(cache.num_blocks, cache.block_size)
        for source, target in inputs.copies:
            blocks[target] = blocks[source]

    def _one(self, sequence: SequenceInput, cache: KVCache, pool: AdapterPool) -> Tensor:
        """Logits [len(logits_at), width] of one sequence."""
        prefix = None if sequence.adapter is None else pool[sequence.adapter].prefix
        given = 0 if prefix is None else prefix.keys.shape[1]
        slots = slots_of(Placed(sequence, 0), cache.block_size, self._tokens.device)
        self._tokens[slots[sequence.start :]] = torch.tensor(sequence.token_ids)
        known: list[int] = self._tokens[slots[given : sequence.start]].tolist()
        token_ids = [*known, *sequence.token_ids]
        past = self._take(int(slots[sequence.start - 1]), sequence, known) if known else None
        if past is None:
            past = self._form.make(_given(prefix)) if self._form and (prefix or self._positions) else None
            whole = replace(sequence, token_ids=token_ids, start=given)
            logits, past = self._run(whole, None, past, cache, pool)
            logits = logits[len(known) :]
        else:
            assert self._positions is not None
            logits, past = self._run(sequence, self._positions(len(known), given), past, cache, pool)
        if self._positions is not None:
            self._keep(int(slots[-1]), _Past(sequence.adapter, token_ids, past))
        return logits[sequence.logits_at]

    def _run(
        self, sequence: SequenceInput, position: int | None, past: Any, cache: KVCache, pool: AdapterPool
    ) -> tuple[Tensor, Any]:
        """Logits [T, width] of the tokens in ``sequence`` behind ``past``, and what is the past then.

        ``position`` is that of the first one where the code is told.
        """
        sequence = replace(sequence, logits_at=list(range(len(sequence.token_ids))))
        batch = assemble(ModelInput([sequence]), cache, pool, self._base.device)
        with computing(batch.step):
            logits, past = _call(self._base, batch.input_ids[None], position, past, keeps=self._positions is not None)
        return mask_unknown(logits, batch.step.head_segments, pool, self._num_logits), past

    def _take(self, slot: int, sequence: SequenceInput, known: list[int]) -> Any:
        """The cache of exactly the tokens ``known``; None where it was given up, or more than a token comes."""
        past = self._pasts.pop(slot, None)
        fits = past is not None and past.adapter == sequence.adapter and past.token_ids == known
        return past.cache if past is not None and fits and len(sequence.token_ids) == 1 else None

    def _keep(self, slot: int, past: _Past) -> None:
        self._pasts[slot] = past
        self._pasts.move_to_end(slot)
        while len(self._pasts) > _KEPT:
            self._pasts.popitem(last=False)


def _form(base: LoadedBase) -> CacheForm | None:
    """The form of the cache that the code keeps; None where it keeps none. EngineStartError when it does not run."""
    try:
        with torch.inference_mode():
            _call(base, torch.tensor([_PROMPT], device=base.device), None, None)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise EngineStartError(f"the base's own code fails on a short prompt ({why})") from error
    try:
        return cache_form(base.model)
    except ValueError:
        return None


def _any_prefix(form: CacheForm, base: LoadedBase) -> PrefixKV:
    """Some keys and values of three tokens."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, form.layers, 3, form.heads, form.width, generator=generator)
    keys, values = both.to(base.device, base.dtype)
    return PrefixKV(keys, values)


def reads_prefixes_alike(base: LoadedBase, layers: list[LayerShape]) -> bool:
    """Whether ``base``, attending through the paged cache, reads a prefix as its code reads one in a cache, as by peft.

    Its code may count a prompt's positions otherwise behind one.
    """
    config, ids = base.model.config, torch.tensor([_PROMPT], device=base.device)
    ours, config._attn_implementation = config._attn_implementation, "eager"
    try:
        form = cache_form(base.model)
        prefix = _any_prefix(form, base)
        with torch.inference_mode():
            want, _ = _call(base, ids, None, form.make(_given(prefix)))
    except OWN_ERRORS:
        return True  # then no such adapter can be trained for it
    finally:
        config._attn_implementation = ours
    cache = KVCache(layers, 1, 16, base.dtype, base.device)
    cache.write_prefix(prefix, torch.arange(3, device=base.device))
    batch = assemble(ModelInput([SequenceInput(None, _PROMPT, 3, [0], [0])]), cache, AdapterPool(), base.device)
    with torch.inference_mode(), computing(batch.step):
        output = base.model(input_ids=batch.input_ids[None], position_ids=batch.positions[None], use_cache=False)
    return distance(output.logits[0].float(), want.float()) <= ROUNDING[dtype_name(base.dtype)]


def paged_problem(base: LoadedBase) -> str | None:
    """Why ``base``, which has code of its own, cannot be computed through the paged cache; None where it can."""
    try:
        layers = probe_layers(base)
        check_untested(base, layers)
    except EngineStartError as error:
        return str(error)
    return None if reads_prefixes_alike(base, layers) else "its code counts positions behind a prefix otherwise"


def _given(prefix: PrefixKV | None) -> Sequence[Tensor]:
    """Keys and values of ``prefix``, [2, 1, heads, tokens, width] of each layer."""
    if prefix is None:
        return ()
    return torch.stack([prefix.keys, prefix.values]).transpose(0, 1).transpose(2, 3)[:, :, None].unbind()


def _adapt_filter(module: nn.Module, name: str) -> None:
    """Let the adapter of the sequence at hand replace the parameters of ``module``."""
    base: Callable[[Tensor], Tensor] = module.forward
    site = BaseSite(module)

    def forward(x: Tensor) -> Tensor:
        groups = current().groups.get(name)
        if groups is None:
            return base(x)
        (group,) = groups.after
        assert isinstance(group.op, ReplaceParameters)
        return site.call({leaf: value[0] for leaf, value in group.op.parameters.items()}, x)

    module.forward = forward


def _call(
    base: LoadedBase, input_ids: Tensor, position: int | None, past: Any, *, keeps: bool = False
) -> tuple[Tensor, Any]:
    """Logits [T, vocab_size] of ``input_ids`` [1, T] behind ``past``, and with ``keeps`` what is then the past."""
    options: dict[str, Any] = {} if past is None else {"past_key_values": past}
    if position is not None:
        options["position_ids"] = torch.tensor([[position]], device=base.device)
    output = base.model(input_ids=input_ids, use_cache=keeps or past is not None, **options)
    return output.logits[0], past if isinstance(past, Cache) else output.past_key_values


Positions = Callable[[int, int], int | None]
# What position code may want to be told of a token behind so many others and a prefix of so many.
_POSITIONS: tuple[Positions, ...] = (
    lambda _before, _prefix: None,
    lambda before, prefix: before + prefix,
    lambda before, _prefix: before,
)


@torch.inference_mode()
def _way_on(base: LoadedBase, form: CacheForm | None) -> Positions | None:
    """How the next token of a sequence is computed from a cache so that it is as if all were computed again."""
    if form is None:
        return None
    for positions in _POSITIONS:
        try:
            if all(_goes_on(base, form, positions, prefix) for prefix in (None, _any_prefix(form, base))):
                return positions
        except OWN_ERRORS:
            continue
    return None


def _goes_on(base: LoadedBase, form: CacheForm, positions: Positions, prefix: PrefixKV | None) -> bool:
    ids = torch.tensor([_PROMPT], device=base.device)
    given = 0 if prefix is None else prefix.keys.shape[1]
    want, _ = _call(base, ids, None, None if prefix is None else form.make(_given(prefix)))
    part, past = _call(base, ids[:, :4], None, form.make(_given(prefix)), keeps=True)
    found = [part]
    for i in range(4, ids.shape[1]):
        part, past = _call(base, ids[:, i : i + 1], positions(i, given), past, keeps=True)
        found.append(part)
    return distance(torch.cat(found).float(), want.float()) <= ROUNDING[dtype_name(base.dtype)]
