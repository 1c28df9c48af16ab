"""Module patterns of a configuration, with peft's exact meaning but bounded time.

The patterns are regular expressions from an upload: Python's ``re`` could be made to backtrack for ever, so the
``regex`` package runs them under a deadline. Knows module names only.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import regex  # type: ignore[import-untyped]

from adapters.checkpoints import checkpoint
from adapters.errors import PackageError
from adapters.kinds.config import TargetedConfig
from adapters.kinds.ranked_patterns import RankedPatterns
from adapters.kinds.regular_expressions import compile_expression

_SECONDS = 5.0  # for all patterns of one configuration
_RULE = r"(.*\.)?({})"
T = TypeVar("T")


class PatternMatcher:
    """Answers which modules a configuration targets, and with which rank and alpha."""

    def __init__(self, config: TargetedConfig, seconds: float = _SECONDS) -> None:
        self._config = config
        self._deadline = time.thread_time() + seconds  # of work: what holds this thread up is none of the patterns'
        self._compiled: dict[str, regex.Pattern[str]] = {}
        self._ranks, self._alphas = RankedPatterns(config.ranks), RankedPatterns(config.alphas)
        excluded = config.exclude_modules or ()
        self._excluded = excluded if isinstance(excluded, str) else frozenset(excluded)

    def rank(self, module: str, default: int) -> int:
        """``rank_pattern``'s rank for ``module``, or ``default``. Raises PackageError for a bad pattern."""
        return self._ranked(self._ranks, module, self._config.ranks.get(module, default))

    def alpha(self, module: str, default: float) -> float:
        """``alpha_pattern``'s alpha for ``module``, or ``default``. Raises PackageError for a bad pattern."""
        return self._ranked(self._alphas, module, self._config.alphas.get(module, default))

    def value(self, patterns: Mapping[str, T] | None, module: str, default: T, rule: str = _RULE) -> T:
        """The value of the first pattern that matches when put into ``rule``, else ``default``. May raise PackageError.

        peft then also looks up the module's own name, which a pattern with special characters may equal. The default
        rule is that of ``rank_pattern``; some kinds' code in peft has another.
        """
        found = patterns or {}
        for pattern, value in found.items():
            if self.matches(rule.replace("{}", pattern), module):
                return value
        return found.get(module, default)

    def _ranked(self, patterns: RankedPatterns[T], module: str, default: T) -> T:
        return patterns.value(
            (module, *ends_of(module)), lambda p: self.matches(_RULE.replace("{}", p), module), default
        )

    def targets(self, modules: Iterable[str]) -> set[str] | None:
        """Those of ``modules`` that the configuration targets; None when only the tensors tell.

        Follows peft's check_target_module_exists. Raises PackageError for a bad pattern.
        """
        wanted = self._config.target_modules
        if wanted is None or (isinstance(wanted, str) and wanted.lower() == "all-linear"):
            return None
        names = wanted if isinstance(wanted, str) else frozenset(wanted)
        return {module for module in modules if self._is_target(names, module) and not self._is_excluded(module)}

    def matches(self, pattern: str, module: str) -> bool:
        """Whether a pattern of the configuration matches all of ``module``. Raises PackageError for a bad pattern."""
        return self._run(pattern, module) is not None

    def _is_target(self, wanted: frozenset[str] | str, module: str) -> bool:
        if isinstance(wanted, str):
            return self.matches(wanted, module)
        return module in wanted or (any(end in wanted for end in ends_of(module)) and self._is_in_layers(module))

    def _is_excluded(self, module: str) -> bool:
        # peft's own rule for what is trained whole: it reads names as patterns here, and as suffixes elsewhere
        if any(self.matches(rf"(^|.*\.){name}($|\..*)", module) for name in self._config.modules_to_save or ()):
            return True
        excluded = self._excluded
        if isinstance(excluded, str):
            return self.matches(excluded, module)
        return module in excluded or any(end in excluded for end in ends_of(module))

    def _is_in_layers(self, module: str) -> bool:
        layers, names = self._config.layers_to_transform, self._config.layers_pattern
        if layers is None or layers == []:
            return True
        patterns = [names] if isinstance(names, str) and names else names or [r"[^.]*"]
        starts = r".*?\." if not names else r"(?:^|.*?\.)"
        for pattern in patterns:
            found = self._run(rf"{starts}{pattern}\.(?P<idx>\d+)\..*", module)
            if found is not None:
                index = int(found.group("idx"))
                return index == layers if isinstance(layers, int) else index in layers
        return False

    def _run(self, pattern: str, module: str) -> regex.Match[str] | None:
        checkpoint()
        left = self._deadline - time.thread_time()
        try:
            if pattern not in self._compiled:
                self._compiled[pattern] = compile_expression(pattern)
            if left <= 0:
                raise TimeoutError
            return self._compiled[pattern].fullmatch(module, timeout=left)
        except TimeoutError as error:
            raise PackageError("the module patterns in adapter_config.json take too long to match") from error
        except MemoryError as error:
            raise PackageError("the module patterns in adapter_config.json take too much memory to match") from error


def ends_of(module: str) -> Iterator[str]:
    """What ``module`` ends with behind a dot: the names by which a list of targets may mean it, its own aside."""
    at = module.find(".")
    while at >= 0:
        yield module[at + 1 :]
        at = module.find(".", at + 1)
