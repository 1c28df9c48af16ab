"""Regular expressions from an upload, compiled where that takes bounded memory. Knows nothing of modules.

They mean what they mean to Python's ``re``, by which peft reads them. The ``regex`` package, which can be stopped,
knows more: recursion, which fills memory, and forms that ``re`` reads otherwise or not at all. Those are refused, like
counted repetitions of repetitions, which it writes out.
"""

from __future__ import annotations

import re

import regex  # type: ignore[import-untyped]

from adapters.errors import PackageError
from adapters.quoting import quote

_MAX_NODES = 100_000  # parts of an expression, its counted repetitions written out
_TOKEN = re.compile(
    r"""
    \\(?: (?P<escape> [AbBdDsSwWZafnrtvxuU] | [^A-Za-z] ) | (?P<bad_escape> . | \Z ) )
    | \[ \^? \]? (?: \\. | [^\]\\] )* \]
    | \(\?\# [^)]* \)
    | \{ (?P<count> [^{}]* ) \}
    | (?P<open> \( (?: \? (?: : | = | ! | <= | <! | > | P<\w+> | \(\d+\) | [aimsu]*(?:-[ims]+)? : ) | (?! [?*] ) ) )
    | \( \? (?: P=\w+ | [aimsu]+ ) \)
    | (?P<close> \) )
    | (?P<bad> \( [?*] )
    | .
    """,
    re.VERBOSE | re.DOTALL,
)


def compile_expression(pattern: str) -> regex.Pattern[str]:
    """``pattern`` compiled. PackageError when Python's ``re`` knows no such form, or when it would be too large."""
    _check(pattern)
    try:
        return regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise _malformed(pattern) from error


def _malformed(pattern: str) -> PackageError:
    return PackageError(f"adapter_config.json: {quote(pattern)} is not a regular expression as Python's re reads it")


def _check(pattern: str) -> None:
    groups = [0]  # nodes of each group that is open
    last = 0  # nodes of the part before, which a count repeats
    for token in _TOKEN.finditer(pattern):
        if token["bad"] or token["bad_escape"] is not None:
            raise _malformed(pattern)
        if token["open"]:
            groups.append(1)
            continue
        if token["close"] and len(groups) > 1:
            last = added = groups.pop()
        elif token["count"] is None:
            last = added = 1
        else:
            added = last * (_times(token["count"], pattern) - 1)
            last += added
        groups[-1] += added
        if groups[-1] > _MAX_NODES:
            raise PackageError(f"adapter_config.json: {quote(pattern)} repeats too much to be read; use * or +")


def _times(count: str, pattern: str) -> int:
    """How often the part before is written out, at most."""
    bounds = [bound for bound in count.split(",") if bound]
    if not bounds or len(count.split(",")) > 2 or not all(re.fullmatch("[0-9]{1,9}", bound) for bound in bounds):
        raise _malformed(pattern)
    return max(1, *map(int, bounds))
