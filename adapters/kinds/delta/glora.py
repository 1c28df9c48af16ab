"""GLoRA: the base's weight and bias scaled and shifted (https://huggingface.co/papers/2306.07967)."""

from __future__ import annotations

import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.delta.config import GloraConfig
from adapters.kinds.dense import check_memory, check_update, dense_bytes
from adapters.kinds.layers import Layer, own_bias, sort_layers
from adapters.kinds.saved_adapter import SavedAdapter, tensor_name
from adapters.ops import Adapter, AddOp, Bias, LowRank, Op
from adapters.ops.activations import Magnitude
from adapters.ops.matrices import Delta
from adapters.quoting import quote

_LEAVES = {"lora": ("Xd", "Xu"), "vector": ("X",), "constant": ("X",), "none": ("zeros",)}


def compile_glora(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a GLoRA package.

    Semantics: ``W' = W + W * A + B``, and where the base has a bias, ``b' = b + b * D + E + W C``. A low-rank ``A``
    makes a ``Delta``; one gain for each output feature, or for all, is a ``Magnitude``, and ``B`` then has rank one.
    Shape: ``<module>.glora_<part>.Xd`` [out_features, r] and ``Xu`` [r, in_features] for a part of form lora (of C:
    [in_features, r] and [r, 1]), ``X`` for vectors ([out_features, 1]; C: [in_features, 1]; D, E: [out_features]) and
    constants ([1]); ``zeros`` in the part's full shape for none.
    """
    config = package.config
    assert isinstance(config, GloraConfig)
    first = f"glora_A.{_LEAVES[config.config_A_B][0]}"
    names = [first, *(f"glora_{part}.{leaf}" for part in "ABCDE" for leaf in ("Xd", "Xu", "X", "zeros"))]
    layers = sort_layers(package, base, dict.fromkeys(names))
    if config.config_A_B == "lora":
        sizes = {it.module: dense_bytes(it.out_features, it.in_features) for it in layers.layers}
        check_memory(sizes, "GLoRA", package.limits)
    made: dict[str, tuple[Op, ...]] = {}
    for layer in layers.layers:
        made[layer.module] = _GloraParts(layer, config, base).ops(layers.biases.get(layer.module))
    for module, bias in layers.biases.items():
        made.setdefault(module, (Bias(bias - own_bias(module, base)),))
    return Adapter(config.KIND, {module: ops for module, ops in made.items() if ops})


class _GloraParts:
    """The five parts at one module."""

    def __init__(self, layer: Layer, config: GloraConfig, base: BaseSpec) -> None:
        self._layer, self._base, self._r = layer, base, config.r
        self._has_bias = layer.module in base.biases
        bias_form = config.config_D_E if self._has_bias else "none"
        input_form = config.config_C if self._has_bias else "none"
        self._forms = dict(zip("ABCDE", [config.config_A_B] * 2 + [input_form] + [bias_form] * 2, strict=True))
        wanted = {f"glora_{part}.{leaf}" for part, form in self._forms.items() for leaf in _LEAVES[form]}
        for name in layer.found:
            if name not in wanted:
                raise PackageError(
                    f"tensor {quote(tensor_name(layer.module, name))} is unknown where adapter_config.json says "
                    f"config_A_B {config.config_A_B}, config_C {config.config_C}, config_D_E {config.config_D_E}"
                )

    def ops(self, trained_bias: Tensor | None) -> tuple[Op, ...]:
        """What they do. ``trained_bias`` stands in the place of the base's own, if there is one."""
        return self._dense(trained_bias) if self._forms["A"] == "lora" else self._gains(trained_bias)

    def _dense(self, trained_bias: Tensor | None) -> tuple[Op, ...]:
        weight = self._base.weight(self._layer.module)
        update = weight * self._product("A", *weight.shape) + self._product("B", *weight.shape)
        delta: AddOp = check_update(Delta(update.T.contiguous()), self._layer.module)
        if not self._has_bias:
            return (delta,)
        return delta, self._checked(Bias(self._bias(trained_bias) - own_bias(self._layer.module, self._base)))

    def _gains(self, trained_bias: Tensor | None) -> tuple[Op, ...]:
        out, in_ = self._layer.out_features, self._layer.in_features
        gain, shift = (self._vector(part, out, in_) for part in "AB")
        offset = None
        if self._has_bias:  # y is (W x + b) (1 + gain) once scaled, and is to have the new bias instead
            offset = self._bias(trained_bias) - (1 + gain) * own_bias(self._layer.module, self._base)
            self._checked(Bias(offset))
        if self._forms["A"] == "none":
            return () if offset is None else (Bias(offset),)
        return Magnitude(gain, offset), self._checked(LowRank(torch.ones(in_, 1), shift[None].contiguous()))

    def _bias(self, trained: Tensor | None) -> Tensor:
        """The new bias, [out_features]."""
        own = own_bias(self._layer.module, self._base) if trained is None else trained
        d, e = (self._vector(part, self._layer.out_features) for part in "DE")
        size = self._layer.in_features
        c = self._product("C", size, 1)[:, 0] if self._forms["C"] == "lora" else self._vector("C", size, 1)
        return own + own * d + e + (self._base.weight(self._layer.module) @ c if self._forms["C"] != "none" else 0)

    def _product(self, part: str, rows: int, columns: int) -> Tensor:
        xd = self._layer.tensor(f"glora_{part}.Xd", (rows, self._r))
        return xd @ self._layer.tensor(f"glora_{part}.Xu", (self._r, columns))

    def _vector(self, part: str, size: int, columns: int | None = None) -> Tensor:
        """A part as a vector [size]. Vectors of A, B, C are saved as a column; ``columns`` are those of their zeros."""
        form = self._forms[part]
        if form == "none":
            self._check_zeros(part, (size,) if columns is None else (size, columns))
            return torch.zeros(size)
        shape = (1,) if form == "constant" else (size,) if columns is None else (size, 1)
        return self._layer.tensor(f"glora_{part}.X", shape).reshape(-1).expand(size).contiguous()

    def _check_zeros(self, part: str, shape: tuple[int, ...]) -> None:
        name = f"glora_{part}.zeros"
        if bool(self._layer.tensor(name, shape).any()):
            raise PackageError(
                f"tensor {quote(tensor_name(self._layer.module, name))} is not zero, although adapter_config.json "
                "says none"
            )

    def _checked(self, op: AddOp) -> Op:
        return check_update(op, self._layer.module)
