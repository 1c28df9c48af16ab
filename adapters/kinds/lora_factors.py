"""The two factors of an adapted module: their shapes, their scale, and the sparse forms they are saved in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adapters.configs.lora import LoraConfig
from adapters.errors import PackageError
from adapters.kinds.check import expect_shape
from adapters.kinds.names import key
from adapters.names import shown
from adapters.patterns import PatternMatcher


def factor(module: str, found: Mapping[str, Tensor], parameter: str) -> Tensor:
    """``found[parameter]``. PackageError when it is missing."""
    if parameter not in found:
        raise PackageError(f"tensor {shown(key(module, parameter))} is missing; its partner is there")
    return found[parameter]


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
    check_factor(key(module, "lora_A.weight"), a, (r, a_width), a.shape[-1:] != (a_width,))
    check_factor(key(module, "lora_B.weight"), b, (out_features, b_width), b.shape[:1] != (out_features,))
    if blocks == "A":
        return _block_diagonal(a, config.nblocks), b.float()
    if blocks == "B":
        return a.float(), _block_diagonal(b, config.nblocks)
    return _unpooled(module, a, in_features), b.float()


def check_factor(name: str, tensor: Tensor, expected: tuple[int, int], is_other_base: bool) -> None:
    """PackageError for another shape than ``expected``, with the reason that suggests itself."""
    if is_other_base or tensor.dim() != 2:
        hint = "the shape suggests that the adapter was made for another base"
    else:
        hint = "the rank differs from what r and rank_pattern say in adapter_config.json"
    expect_shape(name, tensor, expected, hint)


def finite(name: str, scaled: Tensor) -> Tensor:
    """``scaled`` itself. PackageError when it is not finite."""
    if not bool(torch.isfinite(scaled).all()):
        raise PackageError(f"tensor {shown(name)} times its scale is not finite; lora_alpha is too large")
    return scaled


def _per_block(module: str, width: int, height: int, nblocks: int) -> int:
    if width % nblocks or height % nblocks:
        raise PackageError(
            f"use_bdlora: the sides of a factor of {shown(module)} are no multiples of nblocks {nblocks}"
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
        raise PackageError(f"qalora_group_size does not divide the {in_features} inputs of {shown(module)}")
    size = in_features // groups
    return (a.float() * (groups / size)).repeat_interleave(size, dim=1)
