"""What LoRA does at one module of the base."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from adapters.base import BaseSpec
from adapters.configs.lora import LoraConfig
from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.check import expect_shape
from adapters.kinds.lora_dora import magnitude, row_norms
from adapters.kinds.lora_factors import check_factor, factor, finite, linear_factors, rank_and_scale
from adapters.kinds.lora_tensors import EMBEDDING, LINEAR
from adapters.kinds.names import key
from adapters.kinds.targets import linear_shape
from adapters.names import shown
from adapters.ops import Bias, LowRank, Op
from adapters.ops.embedding import LowRankEmbedding
from adapters.patterns import PatternMatcher

OTHER_BASE = "the shape suggests that the adapter was made for another base"


def linear_ops(
    module: str, found: Mapping[str, Tensor], base: BaseSpec, config: LoraConfig, matcher: PatternMatcher
) -> list[Op]:
    """Ops of one linear map. Raises PackageError."""
    shape = linear_shape(module, "lora_A.weight", base)
    _only(module, found, LINEAR)
    r, scale = rank_and_scale(module, config, matcher)
    a, b = linear_factors(module, found, shape, r, config)
    b = finite(key(module, "lora_B.weight"), b * scale)
    ops: list[Op] = [LowRank(a.T.contiguous(), b.T.contiguous())]
    if config.lora_bias:
        name = key(module, "lora_B.bias")
        trained = factor(module, found, "lora_B.bias")
        expect_shape(name, trained, shape[:1], OTHER_BASE)
        ops.append(Bias(finite(name, trained.float() * scale)))
    if config.use_dora:
        trained = factor(module, found, "lora_magnitude_vector")
        norms = row_norms(_weight(module, shape, base), b, a)
        ops.append(magnitude(key(module, "lora_magnitude_vector"), trained, norms, base.biases.get(module)))
    return ops


def embedding_ops(
    module: str, found: Mapping[str, Tensor], base: BaseSpec, config: LoraConfig, matcher: PatternMatcher
) -> list[Op]:
    """Ops of the input embedding. Raises PackageError, and UnsupportedKindError for options of linear maps."""
    if module != base.embedding:
        raise UnsupportedKindError(
            f"tensor {shown(key(module, next(iter(found))))} adapts an embedding that is not the base's input "
            "embedding; only that one is adapted"
        )
    if config.lora_bias or config.invocation_tokens or config.use_bdlora or config.velora_config:
        raise UnsupportedKindError(
            "adapter_config.json adapts the input embedding with an option that peft has for linear maps only "
            "(lora_bias, alora_invocation_tokens, use_bdlora or velora_config)"
        )
    _only(module, found, EMBEDDING)
    r, scale = rank_and_scale(module, config, matcher)
    a, b = factor(module, found, "lora_embedding_A"), factor(module, found, "lora_embedding_B")
    check_factor(key(module, "lora_embedding_A"), a, (r, base.vocab_size), a.shape[-1:] != (base.vocab_size,))
    check_factor(key(module, "lora_embedding_B"), b, (base.hidden_size, r), b.shape[:1] != (base.hidden_size,))
    a, b = a.float(), finite(key(module, "lora_embedding_B"), b.float() * scale)
    ops: list[Op] = [LowRankEmbedding(a.T.contiguous(), (b * base.embed_scale).T.contiguous())]
    if config.use_dora:
        trained = factor(module, found, "lora_magnitude_vector")
        weight = _weight(module, (base.vocab_size, base.hidden_size), base)
        norms = row_norms(weight.T, b, a)  # over the vocabulary, for each hidden feature
        ops.append(magnitude(key(module, "lora_magnitude_vector"), trained, norms, None))
    return ops


def _weight(module: str, shape: tuple[int, int], base: BaseSpec) -> Tensor:
    weight = base.weight(module)
    if weight.shape != shape:
        raise UnsupportedKindError(
            f"DoRA of {shown(module)} with a resized vocabulary is not served; train without use_dora, or without "
            "adapting this module"
        )
    return weight


def _only(module: str, found: Mapping[str, Tensor], parameters: tuple[str, ...]) -> None:
    for parameter in found:
        if parameter not in parameters:
            raise PackageError(
                f"tensor {shown(key(module, parameter))} is unknown: the module has factors of the other sort "
                "(linear map or embedding) too"
            )
