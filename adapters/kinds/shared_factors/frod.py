"""FRoD: other weights, given in a basis that modules of one role share."""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.dense import check_memory, dense_bytes
from adapters.kinds.layers import Layer, own_bias, sort_layers
from adapters.kinds.saved_adapter import SavedAdapter
from adapters.kinds.shared_factors.config import FrodConfig
from adapters.kinds.shared_factors.shared_tensors import SharedTensors
from adapters.ops import Adapter, Op
from adapters.ops.replace import ReplaceLinear
from adapters.quoting import quote

_L, _S = _PARAMETERS = ("frod_lambda_l", "frod_lambda_s_values")
_TINY = 1e-12


def compile_frod(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a FRoD package (https://doi.org/10.1609/aaai.v40i31.39813).

    Semantics: ``W' = U (S + diag(lambda_l)) V^T`` in the place of the base's ``W``, where ``S`` has the entries
    ``lambda_s_values`` at ``s_indices`` and ``U`` is ``W V^-T`` with columns of length one. The update has full rank,
    so an adapter weighs what its modules do. It is bound to the weights that it was trained on: the basis magnifies
    what a quantized base rounds away.
    Shape: with n = in_features ``frod_V.<role>`` [n, n]; ``frod_s_indices.<role>`` [2, e]; ``frod_s_size.<role>`` [2];
    ``<module>.frod_lambda_l`` [n]; ``<module>.frod_lambda_s_values`` [e].
    """
    config = package.config
    assert isinstance(config, FrodConfig)
    shared = SharedTensors(package, "frod_")
    layers = sort_layers(shared.rest, base, _PARAMETERS)
    sizes = {it.module: dense_bytes(it.out_features, it.in_features) for it in layers.layers}
    check_memory(sizes, config.KIND, package.limits)
    bases: dict[str, _Basis] = {}
    for layer in layers.layers:
        role = role_of(layer.module)
        if role not in bases:
            bases[role] = _Basis(shared, role, layer.in_features)
    shared.check_empty("no adapted module has this role")
    return layers.compile(lambda layer: (_replacement(layer, bases[role_of(layer.module)], base),))


def role_of(module: str) -> str:
    """The name under which peft shares a basis between modules of the same role in all layers."""
    parts = module.split(".")
    if len(parts) == 1 or parts[-2].isdigit():
        return parts[-1]
    role = f"{parts[-2]}_{parts[-1]}"
    return "attention_output" if role == "output_dense" and parts[-3:-2] == ["attention"] else role


class _Basis:
    """What modules of one role share: ``v`` [n, n] in float64, and the places of the sparse entries."""

    def __init__(self, shared: SharedTensors, role: str, side: int) -> None:
        self.v = shared.take(f"frod_V.{role}", (side, side)).double()
        self.places = shared.take_indices(f"frod_s_indices.{role}", (2, None), side)
        size = shared.take_indices(f"frod_s_size.{role}", (2,), side + 1)
        if size.tolist() != [side, side]:
            raise PackageError(f"tensor 'base_model.frod_s_size.{role}' says {size.tolist()}, and the basis has {side}")

        try:
            self.lu: tuple[Tensor, Tensor] | None = torch.linalg.lu_factor(self.v)
        except RuntimeError:  # singular: peft takes the pseudo-inverse
            self.lu = None

    def left(self, weight: Tensor) -> Tensor:
        """``U``, columns of length one (or zero). Shape: ``weight`` [out, n], as the result."""
        if self.lu is None:
            found = weight.double() @ torch.linalg.pinv(self.v, rtol=1e-6).T
        else:
            found = torch.linalg.lu_solve(*self.lu, weight.double().T).T
        lengths = found.norm(dim=0)
        return torch.where(lengths > _TINY, found / lengths, 0.0)


def _replacement(layer: Layer, basis: _Basis, base: BaseSpec) -> Op:
    side = layer.in_features
    if basis.v.shape[0] != side:
        raise PackageError(
            f"module {quote(layer.module)} has {side} inputs, and the basis of its role {basis.v.shape[0]}; the "
            "adapter was made for another base"
        )
    entries = layer.tensor(_S, (basis.places.shape[1],)).double()
    inner = torch.diag(layer.tensor(_L, (side,)).double())
    inner.index_put_((basis.places[0], basis.places[1]), entries, accumulate=True)
    weight = (basis.left(base.weight(layer.module)) @ inner @ basis.v.T).float()
    if not bool(torch.isfinite(weight).all()):
        raise PackageError(f"the weight that the package gives module {quote(layer.module)} is not finite")
    return ReplaceLinear(weight, own_bias(layer.module, base) if layer.module in base.biases else None)
