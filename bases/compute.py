"""Where a base is computed, in which type, and how the end of memory shows itself there."""

from __future__ import annotations

from typing import Any

import torch

from hotkernels import native

_MEMORY_WORDS = ("DefaultCPUAllocator", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def resolve_device(name: str) -> torch.device:
    """The device meant by ``--device``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute type meant by ``name``: ``auto`` is bfloat16 only where the device multiplies it natively.

    Elsewhere it is emulated: measured five times slower than float32 on an AVX-512 CPU without AVX512-BF16.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    is_native = _cuda_has_bf16() if device.type == "cuda" else _cpu_has_bf16()
    return torch.bfloat16 if is_native else torch.float32


def serving_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute type that a base is served in: as ``resolve_dtype``, but ``auto`` is what native kernels take.

    They compute in float32 over weights of any type. Raises KernelError.
    """
    if name == "auto" and uses_kernels(device, torch.float32):
        return torch.float32
    return resolve_dtype(name, device)


def uses_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether native kernels compute on ``device`` in ``dtype``. Raises KernelError."""
    return device.type == "cpu" and dtype == torch.float32 and native.library() is not None


def describe_kernels(device: torch.device, dtype: torch.dtype) -> str:
    """Which kernels compute, in a few words: a variant, or torch and why."""
    if uses_kernels(device, dtype):
        return native.variant()
    if device.type != "cpu":
        return f"torch, because the base is on {device}"
    if native.library() is not None:
        return f"torch, because native kernels compute in float32, not {dtype_name(dtype)}"
    return f"torch, because {native.why_torch()}"


def dtype_name(dtype: torch.dtype) -> str:
    """The name that settings and records have for ``dtype``, such as ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def _cuda_has_bf16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _cpu_has_bf16() -> bool:
    # not mkldnn's own answer: it says yes wherever it can emulate
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is the end of memory, of a GPU or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_WORDS)
