"""Adapters of every served kind, as peft itself configures them: what the tests of all kinds run over.

A module here is one group of kinds and holds ``CASES``; a new kind adds a case, and is then tested alone and mixed
with all others, over every executor and quantization.
"""

from __future__ import annotations

import importlib
import pkgutil

from tests.kinds.case import Case

CASES: dict[str, Case] = {}
for _module in sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name != "case"):
    CASES |= importlib.import_module(f"tests.kinds.{_module}").CASES
