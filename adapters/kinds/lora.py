"""LoRA and its variants: rsLoRA, DoRA, BD-LoRA, QA-LoRA, aLoRA; on linear maps, the input embedding and the head."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.configs.lora import LoraConfig
from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.biases import own_bias, trained_bias
from adapters.kinds.lora_experts import compile_parameters
from adapters.kinds.lora_factors import factor
from adapters.kinds.lora_layers import embedding_ops, linear_ops
from adapters.kinds.lora_tensors import Layers, sort_tensors
from adapters.kinds.names import key
from adapters.kinds.targets import check_targets
from adapters.names import shown
from adapters.ops import Adapter, Bias, Op
from adapters.package import AdapterPackage
from adapters.patterns import PatternMatcher


def compile_lora(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """Ops of a LoRA package.

    Semantics: ``LowRank`` with the scale folded into ``b``, on the embedding ``LowRankEmbedding``; then a ``Bias`` for
    lora_B's own, or DoRA's ``Magnitude``; then ``Bias`` with the trained bias minus the base's.
    Shape: ``<module>.lora_A.weight`` [r, in_features]; ``<module>.lora_B.weight`` [out_features, r]; of the embedding
    ``lora_embedding_A`` [r, vocab_size], ``lora_embedding_B`` [hidden_size, r]; ``lora_magnitude_vector`` and
    ``lora_B.bias`` [out_features].
    """
    config = package.config
    assert isinstance(config, LoraConfig)
    matcher = PatternMatcher(config)
    parameters, tensors = compile_parameters(package.tensors, base, config, matcher)
    layers, biases = sort_tensors(tensors, config)
    if not layers and not parameters:
        raise PackageError("the package holds no LoRA tensors (base_model.model.<module>.lora_A.weight)")
    ops: dict[str, list[Op]] = defaultdict(list, {place: [op] for place, op in parameters.items()})
    for module, found in layers.items():
        compile_layer = embedding_ops if _is_embedding(found) else linear_ops
        ops[module] += compile_layer(module, found, base, config, matcher)
    tied = _tied_head(layers, base, config)
    others = {base.embedding: "lora_embedding_A"} if base.embedding else {}
    check_targets(set(layers) - tied, base, config, matcher, "lora_A.weight", others=others, exempt=tied)
    for module, trained in biases.items():
        ops[module].append(Bias(trained_bias(module, trained, base) - own_bias(module, base)))
    listed = {module: tuple(of_module) for module, of_module in ops.items()}
    return Adapter(config.KIND, listed, invocation_tokens=_invocation(config, base))


def _is_embedding(found: Mapping[str, Tensor]) -> bool:
    return any(parameter.startswith("lora_embedding") for parameter in found)


def _tied_head(layers: Layers, base: BaseSpec, config: LoraConfig) -> set[str]:
    """The head, when ensure_weight_tying made peft adapt it like the embedding although no target names it."""
    if not (config.ensure_weight_tying and base.tied and base.embedding in layers):
        return set()
    embedding, head = layers[base.embedding], layers.get(base.head)
    if head is None:
        raise PackageError(
            f"tensor {shown(key(base.head, 'lora_A.weight'))} is missing: with ensure_weight_tying the head is adapted "
            "like the embedding"
        )
    for ours, theirs in (("lora_A.weight", "lora_embedding_B"), ("lora_B.weight", "lora_embedding_A")):
        if not torch.equal(factor(base.head, head, ours), factor(base.embedding, embedding, theirs).T):
            raise PackageError(
                f"tensor {shown(key(base.head, ours))} is not {theirs} turned around, although ensure_weight_tying "
                "says that the head is adapted like the embedding"
            )
    return {base.head}


def _invocation(config: LoraConfig, base: BaseSpec) -> tuple[int, ...]:
    tokens = config.invocation_tokens
    if tokens and base.is_encoder_decoder:
        raise UnsupportedKindError(
            "adapter_config.json sets alora_invocation_tokens, which are served on decoder-only bases; the base "
            f"{shown(base.name)} has an encoder"
        )
    if max(tokens, default=0) >= base.vocab_size:
        raise PackageError(
            f"adapter_config.json: alora_invocation_tokens holds {max(tokens)}, and the base {shown(base.name)} has "
            f"{base.vocab_size} tokens; the adapter was made for another base"
        )
    return tokens
