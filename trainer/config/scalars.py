"""What unquoted words are: a switch, a number, null or text. What only looks like a number (``5e-4_lora``) is text."""

from __future__ import annotations

import re
from typing import Any

SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
"""The values of a switch, in lower case."""

_INTEGER = re.compile(r"[-+]?(0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[0-9][0-9_]*)")
_FLOAT = re.compile(
    r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_BOOLEAN = re.compile(r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF")
_NULL = ("", "~", "null", "Null", "NULL")


def plain_value(text: str) -> Any:
    """None, a boolean or a number where unquoted ``text`` is one in YAML; otherwise ``text``."""
    if text in _NULL:
        return None
    if _BOOLEAN.fullmatch(text):
        return SWITCHES[text.lower()]
    try:
        if _INTEGER.fullmatch(text):
            return int(text.replace("_", ""), 0 if text.lstrip("-+")[1:2].isalpha() else 10)
        if _FLOAT.fullmatch(text):
            return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:  # nothing but underscores behind 0x, or more digits than Python reads
        pass
    return text
