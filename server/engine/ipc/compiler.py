"""Leaves torch's compiler and its distributed tensors out of a process that uses neither.

transformers imports both for decorators and types, and bitsandbytes compiles functions that no device of ours calls
when it is imported: a second of every start, and 70 MB for as long as the process lives.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_NAME = "torch._dynamo"
_MARKS = ("allow_in_graph", "assume_constant_result", "disable")  # they say something to the compiler alone


def leave_out_compiler() -> None:
    """Defer the compiler until something really uses it, and let ``torch.compile`` give back what it is given.

    To be called before transformers and bitsandbytes are imported; does nothing where the compiler has been.
    """
    import torch

    if _NAME in sys.modules or (spec := importlib.util.find_spec(_NAME)) is None:
        return
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Deferred
    vars(module).update(dict.fromkeys(_MARKS, _unchanged))
    sys.modules[_NAME] = module
    torch._dynamo = module
    torch.compile = _unchanged  # type: ignore[assignment]
    torch.distributed.is_available = lambda: False  # for good: what was not imported must not be asked for later


class _Deferred(ModuleType):
    """A package that is there, with its submodules, and runs its own code when it is first asked for more."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self.__spec__ is None or self.__spec__.loader is None:
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def _unchanged(function: Any = None, *_: Any, **__: Any) -> Any:
    """A decorator, with arguments or without, that leaves a function as it is."""
    return _itself if function is None else function


def _itself(function: Callable[..., Any]) -> Callable[..., Any]:
    return function
