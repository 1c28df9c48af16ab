"""What kinds share whose modules have factors in common: tensors of the whole package, and tensors of indices."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from adapters.errors import PackageError
from adapters.kinds.saved_adapter import SavedAdapter, expect_fractions, expect_shape
from adapters.quoting import quote

_PREFIX = "base_model."
OTHER_PACKAGE = "adapter_config.json says so; is it this package's?"


class SharedTensors:
    """The tensors ``base_model.<name>`` of a package, whose names begin as the kind says, to be taken one by one."""

    def __init__(self, package: SavedAdapter, start: str) -> None:
        full = f"{_PREFIX}{start}"
        self._found = {name: tensor for name, tensor in package.tensors.items() if name.startswith(full)}
        rest = {name: tensor for name, tensor in package.tensors.items() if name not in self._found}
        self.rest = replace(package, tensors=rest)

    def take(self, name: str, shape: tuple[int | None, ...], advice: str = "is the package complete?") -> Tensor:
        """The tensor in float32. PackageError when it is missing, holds integers, or has another shape.

        A side of None may have any length.
        """
        tensor = self.take_any(name, advice)
        expect_fractions(_PREFIX + name, tensor)
        check_sides(_PREFIX + name, tensor, shape)
        return tensor.float()

    def take_indices(self, name: str, shape: tuple[int | None, ...], count: int) -> Tensor:
        """The tensor as int64. See ``read_indices``."""
        tensor = self.take_any(name)
        check_sides(_PREFIX + name, tensor, shape)
        return read_indices(_PREFIX + name, tensor, tuple(tensor.shape), count)

    def take_any(self, name: str, advice: str = "is the package complete?") -> Tensor:
        """The tensor as saved. PackageError when it is missing."""
        if _PREFIX + name not in self._found:
            raise PackageError(f"tensor {quote(_PREFIX + name)} is missing; {advice}")
        return self._found.pop(_PREFIX + name)

    def check_empty(self, why: str) -> None:
        """PackageError naming a tensor that was not taken."""
        for name in self._found:
            raise PackageError(f"tensor {quote(name)} is not expected: {why}")


def check_sides(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    """PackageError when ``tensor`` has another shape; a side of None may have any length."""
    found = tuple(tensor.shape)
    if len(found) != len(shape):
        raise PackageError(f"tensor {quote(name)} has {len(found)} dimensions, expected {len(shape)}; {OTHER_PACKAGE}")
    expect_shape(name, tensor, tuple(f if s is None else s for f, s in zip(found, shape, strict=True)), OTHER_PACKAGE)


def read_indices(name: str, tensor: Tensor, shape: tuple[int, ...], count: int) -> Tensor:
    """``tensor`` as int64. PackageError when it has another shape, or holds anything but numbers below ``count``."""
    expect_shape(name, tensor, shape, OTHER_PACKAGE)
    if tensor.is_floating_point():
        raise PackageError(f"tensor {quote(name)} holds numbers with a fraction; indices are expected")
    found = tensor.to(torch.int64)
    if found.numel() and not 0 <= int(found.min()) <= int(found.max()) < count:
        raise PackageError(f"tensor {quote(name)} holds an index outside of 0 .. {count - 1}")
    return found


def corner(name: str, tensor: Tensor, sides: tuple[int, ...]) -> Tensor:
    """``tensor`` cut to ``sides``: it may have been made for more modules. PackageError when it is smaller."""
    if any(found < wanted for found, wanted in zip(tensor.shape, sides, strict=True)):
        raise PackageError(
            f"tensor {quote(_PREFIX + name)} has shape {list(tensor.shape)}, and the adapted modules need at least "
            f"{list(sides)}; the adapter was made for another base, or the package is not complete"
        )
    return tensor[tuple(slice(side) for side in sides)]
