"""Splits a command line into a command's own switches and settings: ``key=value``, ``--key value``, ``--key=value``.

Knows neither what the keys mean nor the values' types, but which need no value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


def split_flags(
    argv: Sequence[str], own: Mapping[str, bool], is_switch: Callable[[str], bool]
) -> tuple[list[str], list[str]]:
    """The tokens of ``argv`` that are the command's own, and the settings as ``key=value``.

    ``own`` says of the command's flags whether they take a value. A setting without a value is true: one that
    ``is_switch``, or one that nothing but another flag follows. Several values (``--target_modules a b``) are a list.
    """
    mine: list[str] = []
    settings: list[str] = []
    at = 0
    while at < len(argv):
        token = argv[at]
        name, equals, value = token.partition("=")
        end = at + 1
        if name in own:
            end += bool(own[name] and not equals)
            mine += argv[at:end]
        elif token.startswith("--") and not equals:
            key = token[2:].replace("-", "_")
            end += _count_values(argv[end:], is_switch(key))
            settings.append(f"{key}={_joined(argv[at + 1 : end])}")
        elif token.startswith("--"):
            settings.append(f"{name[2:].replace('-', '_')}={value}")
        else:
            (settings if equals else mine).append(token)
        at = end
    return mine, settings


def _count_values(rest: Sequence[str], is_switch: bool) -> int:
    """How many of the tokens after a flag are its values."""
    count = 0
    while count < len(rest) and _is_value(rest[count], first=count == 0):
        count += 1
    if is_switch:
        return int(count > 0 and rest[0].lower() in ("true", "false", "auto"))
    return count


def _is_value(token: str, *, first: bool) -> bool:
    """A first value may be anything but a flag; more of them are words."""
    return not token.startswith("--") and (first or not ("=" in token or token.endswith((".yaml", ".yml"))))


def _joined(values: Sequence[str]) -> str:
    if len(values) == 1:
        return values[0]
    return f"[{', '.join(values)}]" if values else "true"
