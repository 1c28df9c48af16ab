"""The names of quantizations and compute types, for the settings of server and trainer. Imports no torch."""

from __future__ import annotations

QUANTIZATIONS = ("auto", "nf4", "nf4-dq", "fp4", "fp4-dq", "int8", "none")
DTYPES = ("auto", "float32", "bfloat16", "float16")
