"""Tells how a GGUF file scales rotary positions from the factors that it keeps instead of the settings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.errors import BaseModelError

# Llama 3.1, 3.2 and 3.3 differ in ``factor`` only.
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192


def llama3_scaling(factors: NDArray[np.float32], config: Any) -> dict[str, Any]:
    """The rope parameters of ``config`` with the scaling that ``factors`` [head_dim / 2] come from.

    Raises BaseModelError when they are not those of a Llama 3 model.
    """
    rope = dict(config.rope_parameters)
    factor = float(factors.max())
    if factor == 1.0:
        return rope
    settings = {"factor": factor, "low_freq_factor": _LOW, "high_freq_factor": _HIGH}
    want = _llama3_factors(len(factors), float(rope["rope_theta"]), factor)
    if not np.allclose(factors, want, rtol=1e-4):
        raise BaseModelError("its factors for scaling positions are not those of Llama 3")
    return {**rope, **settings, "rope_type": "llama3", "original_max_position_embeddings": _ORIGINAL}


def _llama3_factors(count: int, theta: float, factor: float) -> NDArray[np.float64]:
    """What each of ``count`` frequencies is divided by.

    Semantics: 1 for wavelengths below ``ORIGINAL / HIGH``, ``factor`` above ``ORIGINAL / LOW``, and in between
    ``1 / ((1 - s) / factor + s)`` with ``s = (ORIGINAL / wavelength - LOW) / (HIGH - LOW)``.
    """
    wavelengths = 2 * math.pi * theta ** (np.arange(count) / count)
    smooth = np.clip((_ORIGINAL / wavelengths - _LOW) / (_HIGH - _LOW), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth), dtype=np.float64)
