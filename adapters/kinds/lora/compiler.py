"""LoRA and its variants: rsLoRA, DoRA, BD-LoRA, QA-LoRA, aLoRA; on linear maps, the input embedding and the head."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.checkpoints import checkpoint
from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.config import PREFIX
from adapters.kinds.layers import BIAS_NAME, check_targets, own_bias, trained_bias
from adapters.kinds.lora.config import LoraConfig
from adapters.kinds.lora.experts import take_experts
from adapters.kinds.lora.modules import embedding_ops, factor, linear_ops
from adapters.kinds.lora.parameters import compile_parameters
from adapters.kinds.patterns import PatternMatcher
from adapters.kinds.saved_adapter import SavedAdapter, tensor_name
from adapters.ops import Adapter, Bias, Op
from adapters.quoting import quote

_PARAMETER = re.compile(
    r"(?P<module>.+)\.(?P<parameter>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector)"
)
_OPTIONS = {"lora_magnitude_vector": "use_dora", "lora_B.bias": "lora_bias"}
_UNSERVED = {
    "lora_diag": "KaSA",
    "embed_tokens.weight": "a saved embedding (was the vocabulary resized?)",
    "lm_head.weight": "a saved output head (was the vocabulary resized?)",
    "base_layer.weight": "a saved weight of the base",
}
TensorsByModule = dict[str, dict[str, Tensor]]


def sort_tensors(tensors: Mapping[str, Tensor], config: LoraConfig) -> tuple[TensorsByModule, dict[str, Tensor]]:
    """Tensors of adapted modules by module and parameter, and trained biases by module. Raises for any other name."""
    layers: TensorsByModule = defaultdict(dict)
    biases: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        checkpoint()
        short = name.removeprefix(PREFIX) if name.startswith(PREFIX) else ""
        if found := _PARAMETER.fullmatch(short):
            _check_option(name, found["parameter"], config)
            layers[found["module"]][found["parameter"]] = tensor
        elif (found := BIAS_NAME.fullmatch(short)) and config.bias != "none" and ".lora_" not in short:
            if found["module"] in biases:
                raise PackageError(f"tensor {quote(name)}: the package holds two biases for this module")
            biases[found["module"]] = tensor
        elif not _is_for_training(short, config):
            _refuse(name)
    return dict(layers), biases


def _is_for_training(short: str, config: LoraConfig) -> bool:
    """State of samplers and compressed backward passes, which trained models never read."""
    if config.velora_config and short.endswith(".lora_velora_embed"):
        return True
    return bool(config.monteclora_config) and ".lora_monteclora_sampler." in short


def _check_option(name: str, parameter: str, config: LoraConfig) -> None:
    option = _OPTIONS.get(parameter)
    if option is not None and not getattr(config, option):
        raise PackageError(
            f"tensor {quote(name)} is unknown where adapter_config.json does not set {option}; set it if the adapter "
            "was trained so"
        )


def _refuse(name: str) -> None:
    for part, what in _UNSERVED.items():
        if part in name:
            raise UnsupportedKindError(f"tensor {quote(name)} belongs to {what}, which is not served")
    raise PackageError(
        f"tensor {quote(name)} is unknown: a LoRA package holds base_model.model.<module>.lora_A.weight and "
        "lora_B.weight, and biases only where its config's 'bias' says so"
    )


def compile_lora(package: SavedAdapter, base: BaseSpec) -> Adapter:
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
    experts = take_experts(tensors, base, config, matcher, package.limits)
    if twice := sorted(parameters.keys() & experts.ops):
        raise PackageError(f"the package adapts {quote(twice[0])} by target_parameters and as a module: peft does not")
    parameters |= experts.ops
    layers, biases = sort_tensors(experts.rest, config)
    if not layers and not parameters:
        raise PackageError("the package holds no LoRA tensors (base_model.model.<module>.lora_A.weight)")
    ops: dict[str, list[Op]] = defaultdict(list, {place: [op] for place, op in parameters.items()})
    for module, found in layers.items():
        compile_layer = embedding_ops if _is_embedding(found) else linear_ops
        ops[module] += compile_layer(module, found, base, config, matcher)
    tied = _tied_head(layers, base, config)
    others = dict.fromkeys(experts.known, "lora_A.weight")
    others |= {base.embedding: "lora_embedding_A"} if base.embedding else {}
    adapted, exempt = (set(layers) - tied) | experts.found, tied | (experts.silent - set(layers))
    check_targets(adapted, base, config, matcher, "lora_A.weight", others=others, exempt=exempt)
    for module, trained in biases.items():
        ops[module].append(Bias(trained_bias(module, trained, base) - own_bias(module, base)))
    listed = {module: tuple(of_module) for module, of_module in ops.items()}
    return Adapter(config.KIND, listed, invocation_tokens=_invocation(config, base))


def _is_embedding(found: Mapping[str, Tensor]) -> bool:
    return any(parameter.startswith("lora_embedding") for parameter in found)


def _tied_head(layers: TensorsByModule, base: BaseSpec, config: LoraConfig) -> set[str]:
    """The head, when ensure_weight_tying made peft adapt it like the embedding although no target names it."""
    if not (config.ensure_weight_tying and base.tied and base.embedding in layers):
        return set()
    embedding, head = layers[base.embedding], layers.get(base.head)
    if head is None:
        raise PackageError(
            f"tensor {quote(tensor_name(base.head, 'lora_A.weight'))} is missing: with ensure_weight_tying the head is "
            "adapted like the embedding"
        )
    for ours, theirs in (("lora_A.weight", "lora_embedding_B"), ("lora_B.weight", "lora_embedding_A")):
        if not torch.equal(factor(base.head, head, ours), factor(base.embedding, embedding, theirs).T):
            raise PackageError(
                f"tensor {quote(tensor_name(base.head, ours))} is not {theirs} turned around, although "
                "ensure_weight_tying says that the head is adapted like the embedding"
            )
    return {base.head}


def _invocation(config: LoraConfig, base: BaseSpec) -> tuple[int, ...]:
    tokens = config.invocation_tokens
    if tokens and base.is_encoder_decoder:
        raise UnsupportedKindError(
            "adapter_config.json sets alora_invocation_tokens, which are served on decoder-only bases; the base "
            f"{quote(base.name)} has an encoder"
        )
    if max(tokens, default=0) >= base.vocab_size:
        raise PackageError(
            f"adapter_config.json: alora_invocation_tokens holds {max(tokens)}, and the base {quote(base.name)} has "
            f"{base.vocab_size} tokens; the adapter was made for another base"
        )
    return tokens
