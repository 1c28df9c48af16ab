"""Biases of the base that an adapter was trained with, for kinds whose configuration has peft's ``bias``."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from adapters.base import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.check import expect_fractions, expect_shape
from adapters.kinds.names import PREFIX, key
from adapters.names import shown

_BIAS = re.compile(r"(?P<module>.+?)(\.base_layer)?\.bias")


def take_biases(tensors: Mapping[str, Tensor], base: BaseSpec) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split ``tensors`` into the others, by name, and the trained biases, by module, in float32.

    PackageError for a bias of a module without one, of another size, or twice.
    """
    others: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found = _BIAS.fullmatch(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
        if found is None:
            others[name] = tensor
            continue
        if found["module"] in biases:
            raise PackageError(f"tensor {shown(name)}: the package holds two biases for this module")
        biases[found["module"]] = trained_bias(found["module"], tensor, base)
    return others, biases


def own_bias(module: str, base: BaseSpec) -> Tensor:
    """The base's bias of ``module``, in float32 on the CPU."""
    return base.biases[module].detach().to("cpu", torch.float32)


def trained_bias(module: str, tensor: Tensor, base: BaseSpec) -> Tensor:
    """``tensor`` in float32, as the bias of ``module``. PackageError when the base has none there, or another size."""
    name = key(module, "bias")
    if module not in base.biases:
        raise PackageError(
            f"tensor {shown(name)}: the module {shown(module)} of {shown(base.name)} has no bias; "
            "the adapter was made for another base"
        )
    expect_fractions(name, tensor)
    hint = "the shape suggests that the adapter was made for another base"
    expect_shape(name, tensor, tuple(base.biases[module].shape), hint)
    return tensor.float()
