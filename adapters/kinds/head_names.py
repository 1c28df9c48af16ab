"""How peft names the tensors of a head that an adapter brings in the place of the base's. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

HEAD_MODULES = frozenset({"score", "classifier"})  # of transformers' models for classes
_HEAD = re.compile(
    r"base_model\.(model\.)?(score|classifier)(\.modules_to_save(\.default)?|\.original_module)?\.(?P<rest>.+)"
)


def without_head(names: Iterable[str]) -> list[str]:
    """Of the modules that were saved whole those that are no head."""
    return [name for name in names if name not in HEAD_MODULES]


def head_parameter(name: str) -> str | None:
    """Which parameter of the head the tensor ``name`` is (weight, bias), "" for one without use; None for others."""
    found = _HEAD.fullmatch(name)
    if found is None:
        return None
    return "" if ".original_module." in name else found["rest"]
