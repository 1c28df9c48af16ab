"""Compaction items: a summary that the model wrote, opaque to clients, and what it takes the place of.

It is nobody's secret, who has the item has the conversation: the mark tells it from what other servers encrypted.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

Item = dict[str, Any]
_MARK = "hotswap.1."
_INTRODUCTION = "Summary of the conversation before this point:\n"


def encode_summary(text: str) -> str:
    """``encrypted_content`` that says ``text``."""
    return _MARK + base64.urlsafe_b64encode(text.encode("utf-8", "replace")).decode()


def last_turn(items: Sequence[Item]) -> list[Item]:
    """What the user said last, and all that came of it; nothing where no user says anything."""
    start, asked = len(items), False
    for number in reversed(range(len(items))):
        item = items[number]
        said_by = item.get("role") if item.get("type", "message") == "message" else None
        if said_by in ("user", "system", "developer"):
            start, asked = number, asked or said_by == "user"
        elif asked:
            break
    return list(items[start:])


def from_summary(items: Sequence[Item]) -> list[Item]:
    """``items`` from their last summary on, which was written when the turn before it had begun."""
    summaries = [number for number, item in enumerate(items) if item.get("type") == "compaction"]
    if not summaries:
        return list(items)
    at = summaries[-1]
    return [items[at], *last_turn(items[:at]), *items[at + 1 :]]


def summary_message(content: str) -> str:
    """What the model is told of ``content``. Raises ValueError for what this server did not write."""
    if not content.startswith(_MARK):
        raise ValueError("this server cannot read what another one has compacted; send the items themselves")
    try:
        text = base64.b64decode(content.removeprefix(_MARK), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ValueError("is cut or changed; send it as POST /v1/responses/compact gave it") from error
    return _INTRODUCTION + text
