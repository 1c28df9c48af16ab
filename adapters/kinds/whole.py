"""Modules of the base that an adapter brings whole: tensors named as the base's own parameters, to ops."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from adapters.base import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.check import expect_shape
from adapters.names import shown
from adapters.ops import Op
from adapters.ops.replace import ReplaceLinear, ReplaceParameters


def replacement(module: str, given: Mapping[str, Tensor], base: BaseSpec) -> Op:
    """The op that lets rows use ``given`` (by parameter name: weight, bias) for ``module``; others stay the base's.

    Shape: as the base stores them. Raises PackageError for a parameter that the base's module does not have.
    """
    for name, tensor in given.items():
        parameter = f"{module}.{name}"
        if parameter not in base.parameters:
            raise PackageError(
                f"tensor {shown(parameter)} matches no parameter of the base {shown(base.name)}: the adapter was made "
                "for another base, or for a part that cannot be replaced (only linear maps, norms and embeddings can)"
            )
        hint = "the shape suggests that the adapter was made for another base"
        expect_shape(parameter, tensor, base.parameters[parameter], hint)
    if module not in base.linears:
        return ReplaceParameters({name: tensor.float() for name, tensor in given.items()})
    weight = given["weight"].float() if "weight" in given else base.weight(module)
    if "weight" in given and module in base.transposed:
        weight = weight.T.contiguous()
    bias = given.get("bias", base.biases.get(module))
    return ReplaceLinear(weight, None if bias is None else bias.detach().to("cpu").float())
