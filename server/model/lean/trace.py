"""One run of the unmodified model over a few tokens, and what every module was given and gave in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from hotkernels.attention import AttentionRule

NAME = "hotswap_traced"
TOKENS = (13, 11)  # the first that is no number of heads, so that shapes tell what is what


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a module. ``y`` is its output, or the first part of it; ``outputs`` are all parts."""

    name: str
    module: nn.Module
    arguments: tuple[Any, ...]
    x: Tensor
    y: Tensor
    outputs: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Attended:
    """A call of the attention function, by the module ``name``, when ``before`` calls of modules had ended.

    Shape: ``q`` [T, Hq, D]; ``k`` [T, Hkv, D]; ``v`` [T, Hkv, Dv]; ``y`` [T, Hq, Dv].
    """

    name: str
    before: int
    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    y: Tensor
    rule: AttentionRule


@dataclass(eq=False)
class Trace:
    """Calls in the order in which they ended, modules inside of others before these; ``logits`` [T, vocab_size]."""

    calls: list[Call] = field(default_factory=list)
    attended: list[Attended] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


class _Tracing:
    trace: Trace | None = None
    names: dict[nn.Module, str]


@torch.inference_mode()
def trace(model: PreTrainedModel) -> Trace:
    """Run ``model``. Raises what it raises, and ValueError where it attends otherwise than causally."""
    found = Trace()
    heads = {getattr(model.config, name, 0) for name in ("num_attention_heads", "num_key_value_heads")}
    count = next(n for n in TOKENS if n not in heads)
    vocab_size = int(model.get_input_embeddings().weight.shape[0])
    ids = (torch.arange(1, count + 1, device=model.device) * 7919) % vocab_size
    positions = torch.arange(count, device=model.device)
    with _recording(model, found):
        output = model(input_ids=ids[None], position_ids=positions[None], use_cache=False)
    found.logits = output.logits[0]
    return found


@contextmanager
def _recording(model: PreTrainedModel, found: Trace) -> Iterator[None]:
    """Hooks on all modules, and an attention function that writes down how it is called."""
    names = {module: name for name, module in model.named_modules()}
    ours, model.config._attn_implementation = model.config._attn_implementation, NAME
    _Tracing.trace, _Tracing.names = found, names
    with ExitStack() as hooks:
        for module, name in names.items():
            handle = module.register_forward_hook(_hook(name, found), with_kwargs=True)
            hooks.callback(handle.remove)
        try:
            yield
        finally:
            model.config._attn_implementation = ours
            _Tracing.trace = None


def _hook(name: str, found: Trace) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        arguments = (*args, *kwargs.values())
        outputs = tuple(output) if isinstance(output, tuple | list) else (output,)
        x = next((a for a in arguments if isinstance(a, Tensor)), None)
        if x is not None and isinstance(outputs[0], Tensor):
            found.calls.append(Call(name, module, arguments, x, outputs[0], outputs))

    return hook


def _attend(  # noqa: PLR0917 - the signature is transformers'
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Takes each head's own value for its output: here it only matters what comes from where."""
    if attention_mask is not None or position_bias is not None or not getattr(module, "is_causal", True):
        raise ValueError("it attends by a mask or bias of its own, or not causally")
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    y = v.repeat_interleave(q.shape[1] // v.shape[1], 1).contiguous()
    rule = AttentionRule(
        q.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window or 0, softcap or 0.0, s_aux
    )
    found, layer = _Tracing.trace, module.layer_idx
    assert found is not None
    assert isinstance(layer, int)
    found.attended.append(Attended(_Tracing.names[module], len(found.calls), layer, q, k, v, y, rule))
    return y[None], None


AttentionInterface.register(NAME, _attend)
