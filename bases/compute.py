"""Where a base is computed, in which type, and how the end of memory shows itself there."""

from __future__ import annotations

from typing import Any

import torch

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
