"""The native library: which variant runs, and calls into it.

``HOTSWAP_KERNELS`` names a variant, or ``torch`` for none; unset, the best that the processor has and the installation
brought is taken. The library is chosen once, at the first question.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

VARIABLE = "HOTSWAP_KERNELS"
TORCH = "torch"
# Best first, each with what it needs of the processor, as torch.cpu names it.
VARIANTS: dict[str, tuple[str, ...]] = {
    "amx": ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_vnni", "amx_tile", "amx_int8", "amx_bf16"),
    "avx512vnni": ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq", "avx512_vnni"),
    "avx512": ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq"),
    "avx2": ("avx2", "fma3", "f16c"),
    "generic": (),
}
# How stored.h numbers the types of stored numbers.
STORED: dict[torch.dtype, int] = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class KernelError(Exception):
    """The variant asked for cannot run here; the message says why."""


def installed() -> list[str]:
    """The variants that the installation brought and the processor can run, best first."""
    return [name for name in VARIANTS if _library_path(name).is_file() and _processor_has(name)]


@cache
def variant() -> str:
    """The variant in use, or ``torch``. Raises KernelError when the environment names one that cannot run."""
    asked = os.environ.get(VARIABLE, "")
    found = installed()
    if not asked:
        return found[0] if found else TORCH
    if asked not in (*VARIANTS, TORCH):
        raise KernelError(f"{VARIABLE}={asked} is none of {', '.join((*VARIANTS, TORCH))}")
    if asked not in (*found, TORCH):
        why = "this processor lacks it" if _library_path(asked).is_file() else "it was not built: is there a compiler?"
        raise KernelError(f"{VARIABLE}={asked} cannot run here: {why}")
    return asked


def why_torch() -> str:
    """Why there is no native library, where ``variant`` is ``torch``."""
    if os.environ.get(VARIABLE) == TORCH:
        return f"{VARIABLE} says so"
    if not any(_library_path(name).is_file() for name in VARIANTS):
        return "the native kernels were not built: there was no C++ compiler when hotswap was installed"
    return "this processor can run none of the native kernels"


@cache
def library() -> ctypes.CDLL | None:
    """The library of the variant in use; None when torch does the work."""
    name = variant()
    if name == TORCH:
        return None
    loaded = ctypes.CDLL(str(_library_path(name)))
    loaded.set_threads(torch.get_num_threads())
    return loaded


class Function:
    """A function of the library, by its C name and the kinds of its arguments.

    A letter an argument: ``p`` a pointer (``Tensor.data_ptr()``, or None for null), ``i`` int64_t, ``f`` float. To be
    called only where ``is_native`` said yes. The interpreter's lock is free while it runs.
    """

    _TYPES: ClassVar[dict[str, Any]] = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}

    def __init__(self, name: str, arguments: str) -> None:
        self._name, self._kinds = name, arguments
        self._types = [self._TYPES[letter] for letter in arguments]
        self._found: tuple[ctypes.CDLL, Any] | None = None

    def __call__(self, *arguments: float | None) -> None:
        """Call it."""
        chosen = library()
        if self._found is None or self._found[0] is not chosen:
            assert chosen is not None, f"{self._name} was called where torch does the work"
            function = getattr(chosen, self._name)
            function.argtypes, function.restype = self._types, None
            self._found = chosen, function
        self._found[1](*arguments)

    def op(self) -> tuple[int, str]:
        """Where a program finds it, and the kinds of its arguments; for functions that are an OP in the sources."""
        chosen = library()
        assert chosen is not None, f"{self._name} was asked for where torch does the work"
        return ctypes.addressof(ctypes.c_char.in_dll(chosen, f"op_{self._name}")), self._kinds


def set_num_threads(count: int) -> None:
    """How many threads native ops share their work over. Changes no result."""
    if (loaded := library()) is not None:
        loaded.set_threads(count)


def is_native(*tensors: Tensor | None) -> bool:
    """Whether an op over ``tensors`` runs in the library: all on the CPU, activations in fp32, rows in one piece.

    The first tensor is the activation that decides; the others are only asked where they lie.
    """
    first = tensors[0]
    assert first is not None
    if first.dtype is not torch.float32 or library() is None:
        return False
    for tensor in tensors:  # asked some three hundred times a step: no generator
        if tensor is None or (tensor.is_cpu and (tensor.dim() == 0 or 1 in (tensor.stride(-1), tensor.shape[-1]))):
            continue
        return False
    return True


def pointer(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers begin; null for None."""
    return None if tensor is None else tensor.data_ptr()


def _library_path(name: str) -> Path:
    return Path(__file__).with_name(f"lib{name}.so")


def _processor_has(name: str) -> bool:
    capabilities = _capabilities()
    return all(capabilities.get(need, False) for need in VARIANTS[name])


@cache
def _capabilities() -> Mapping[str, Any]:
    return torch.cpu.get_capabilities()


@contextmanager
def using(name: str) -> Iterator[None]:
    """Run what is inside with variant ``name``, for tests and measurements. Not while another thread computes."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    _forget()
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
        _forget()


def _forget() -> None:
    variant.cache_clear()
    library.cache_clear()
