"""The names of quantizations and compute types, for the settings of server and trainer. Imports no torch."""

from __future__ import annotations

from typing import Literal, get_args

Quantized = Literal["nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "gguf"]
Quantization = Literal["none", Quantized]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)
SERVED_QUANTIZATIONS = ("auto", *get_args(Quantized), "none")  # auto: as it was saved, or nf4
TrainedDtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = get_args(TrainedDtype)
_DOUBLE = "-dq"


def split_quantization(name: str) -> tuple[str, bool]:
    """What the weights are made of, and whether their scales are quantized too: ``nf4-dq`` is nf4, doubly."""
    return name.removesuffix(_DOUBLE), name.endswith(_DOUBLE)


def join_quantization(kind: str, *, double: bool) -> str:
    """The name that ``split_quantization`` takes apart."""
    return kind + _DOUBLE if double else kind
