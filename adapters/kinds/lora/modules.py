"""What LoRA does at one module of the base: the factors in the forms they are saved in, and DoRA's gains."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.layers import linear_shape
from adapters.kinds.lora.config import LoraConfig
from adapters.kinds.patterns import PatternMatcher
from adapters.kinds.saved_adapter import OTHER_BASE, expect_shape, require, tensor_name
from adapters.ops import Bias, LowRank, Op
from adapters.ops.activations import Magnitude
from adapters.ops.embedding import LowRankEmbedding
from adapters.quoting import quote

LINEAR = ("lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector")
EMBEDDING = ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")


def factor(module: str, found: Mapping[str, Tensor], parameter: str) -> Tensor:
    """``found[parameter]``. PackageError when it is missing."""
    return require(module, found, parameter, "its partner is there")


def rank_and_scale(module: str, config: LoraConfig, matcher: PatternMatcher) -> tuple[int, float]:
    """The rank of ``module``'s factors, and what their product is multiplied by."""
    r = matcher.rank(module, config.r)
    return r, config.scale(r, matcher.alpha(module, config.lora_alpha))


def linear_factors(
    module: str, found: Mapping[str, Tensor], shape: tuple[int, int], r: int, config: LoraConfig
) -> tuple[Tensor, Tensor]:
    """A [r, in_features] and B [out_features, r] of a linear map of ``shape``, dense, in float32."""
    out_features, in_features = shape
    a, b = factor(module, found, "lora_A.weight"), factor(module, found, "lora_B.weight")
    blocks = config.use_bdlora.factor(module) if config.use_bdlora is not None else None
    a_width, b_width = in_features, r
    if blocks == "A":
        a_width = _per_block(module, in_features, r, config.nblocks)
    elif blocks == "B":
        b_width = _per_block(module, r, out_features, config.nblocks)
    elif config.use_qalora and a.shape[-1:] != (in_features,):
        a_width = in_features // config.qalora_group_size
    check_factor(tensor_name(module, "lora_A.weight"), a, (r, a_width), a.shape[-1:] != (a_width,))
    check_factor(tensor_name(module, "lora_B.weight"), b, (out_features, b_width), b.shape[:1] != (out_features,))
    if blocks == "A":
        return _block_diagonal(a, config.nblocks), b.float()
    if blocks == "B":
        return a.float(), _block_diagonal(b, config.nblocks)
    return _unpooled(module, a, in_features), b.float()


def check_factor(name: str, tensor: Tensor, expected: tuple[int, int], is_other_base: bool) -> None:
    """PackageError for another shape than ``expected``, with the reason that suggests itself."""
    if is_other_base or tensor.dim() != 2:
        hint = OTHER_BASE
    else:
        hint = "the rank differs from what r and rank_pattern say in adapter_config.json"
    expect_shape(name, tensor, expected, hint)


def finite_factor(name: str, scaled: Tensor) -> Tensor:
    """``scaled`` itself. PackageError when it is not finite."""
    if not bool(torch.isfinite(scaled).all()):
        raise PackageError(f"tensor {quote(name)} times its scale is not finite; lora_alpha is too large")
    return scaled


def _per_block(module: str, width: int, height: int, nblocks: int) -> int:
    if width % nblocks or height % nblocks:
        raise PackageError(
            f"use_bdlora: the sides of a factor of {quote(module)} are no multiples of nblocks {nblocks}"
        )
    return width // nblocks


def _block_diagonal(saved: Tensor, nblocks: int) -> Tensor:
    """BD-LoRA saves the blocks above each other."""
    dense: Tensor = torch.block_diag(*saved.float().chunk(nblocks))  # type: ignore[no-untyped-call]
    return dense


def _unpooled(module: str, a: Tensor, in_features: int) -> Tensor:
    """QA-LoRA (Xu et al., 2023, https://arxiv.org/abs/2309.14717) gives A one column for each group of inputs.

    Semantics: A sees the mean of each group times the number of groups: ``A'[:, j] = A[:, j // size] * groups / size``.
    """
    groups = a.shape[1]
    if groups == in_features:
        return a.float()
    if in_features % groups:
        raise PackageError(f"qalora_group_size does not divide the {in_features} inputs of {quote(module)}")
    size = in_features // groups
    return (a.float() * (groups / size)).repeat_interleave(size, dim=1)


_CHUNK = 1 << 22  # elements of the updated weight that exist at once


def row_norms(weight: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """The norm of every row of ``weight + b @ a``, a few rows at a time.

    Shape: ``weight`` [out, in]; ``b`` [out, r]; ``a`` [r, in]; result [out].
    """
    rows = max(1, _CHUNK // weight.shape[1])
    parts = zip(torch.split(weight, rows), torch.split(b, rows), strict=True)
    return torch.cat([torch.linalg.norm(w + part @ a, dim=1) for w, part in parts])


def magnitude(name: str, trained: Tensor, norms: Tensor, bias: Tensor | None) -> Magnitude:
    """The op of the magnitudes ``trained``, saved as ``name``, over rows of ``norms``. Shape: all [out]."""
    expect_shape(name, trained, tuple(norms.shape), OTHER_BASE)
    excess = trained.float() / norms - 1
    if not bool(torch.isfinite(excess).all()):
        raise PackageError(f"tensor {quote(name)}: some output feature of the updated weight is all zero or not finite")
    return Magnitude(excess, None if bias is None else -excess * bias.detach().cpu().float())


def linear_ops(
    module: str, found: Mapping[str, Tensor], base: BaseSpec, config: LoraConfig, matcher: PatternMatcher
) -> list[Op]:
    """Ops of one linear map. Raises PackageError."""
    shape = linear_shape(module, "lora_A.weight", base)
    _check_only(module, found, LINEAR)
    r, scale = rank_and_scale(module, config, matcher)
    a, b = linear_factors(module, found, shape, r, config)
    b = finite_factor(tensor_name(module, "lora_B.weight"), b * scale)
    ops: list[Op] = [LowRank(a.T, b.T.contiguous())]
    if config.lora_bias:
        name = tensor_name(module, "lora_B.bias")
        trained = factor(module, found, "lora_B.bias")
        expect_shape(name, trained, shape[:1], OTHER_BASE)
        ops.append(Bias(finite_factor(name, trained.float() * scale)))
    if config.use_dora:
        trained = factor(module, found, "lora_magnitude_vector")
        norms = row_norms(_weight(module, shape, base), b, a)
        ops.append(magnitude(tensor_name(module, "lora_magnitude_vector"), trained, norms, base.biases.get(module)))
    return ops


def embedding_ops(
    module: str, found: Mapping[str, Tensor], base: BaseSpec, config: LoraConfig, matcher: PatternMatcher
) -> list[Op]:
    """Ops of the input embedding. Raises PackageError, and UnsupportedKindError for options of linear maps."""
    if module != base.embedding:
        raise UnsupportedKindError(
            f"tensor {quote(tensor_name(module, next(iter(found))))} adapts an embedding that is not the base's input "
            "embedding; only that one is adapted"
        )
    if config.lora_bias or config.invocation_tokens or config.use_bdlora or config.velora_config:
        raise UnsupportedKindError(
            "adapter_config.json adapts the input embedding with an option that peft has for linear maps only "
            "(lora_bias, alora_invocation_tokens, use_bdlora or velora_config)"
        )
    _check_only(module, found, EMBEDDING)
    r, scale = rank_and_scale(module, config, matcher)
    a, b = factor(module, found, "lora_embedding_A"), factor(module, found, "lora_embedding_B")
    check_factor(tensor_name(module, "lora_embedding_A"), a, (r, base.vocab_size), a.shape[-1:] != (base.vocab_size,))
    check_factor(tensor_name(module, "lora_embedding_B"), b, (base.hidden_size, r), b.shape[:1] != (base.hidden_size,))
    a, b = a.float(), finite_factor(tensor_name(module, "lora_embedding_B"), b.float() * scale)
    ops: list[Op] = [LowRankEmbedding(a.T.contiguous(), (b * base.embed_scale).T.contiguous())]
    if config.use_dora:
        trained = factor(module, found, "lora_magnitude_vector")
        weight = _weight(module, (base.vocab_size, base.hidden_size), base)
        norms = row_norms(weight.T, b, a)  # over the vocabulary, for each hidden feature
        ops.append(magnitude(tensor_name(module, "lora_magnitude_vector"), trained, norms, None))
    return ops


def _weight(module: str, shape: tuple[int, int], base: BaseSpec) -> Tensor:
    weight = base.weight(module)
    if weight.shape != shape:
        raise UnsupportedKindError(
            f"DoRA of {quote(module)} with a resized vocabulary is not served; train without use_dora, or without "
            "adapting this module"
        )
    return weight


def _check_only(module: str, found: Mapping[str, Tensor], parameters: tuple[str, ...]) -> None:
    for parameter in found:
        if parameter not in parameters:
            raise PackageError(
                f"tensor {quote(tensor_name(module, parameter))} is unknown: the module has factors of the other sort "
                "(linear map or embedding) too"
            )
