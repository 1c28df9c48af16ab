"""What a file of another trainer says of one of our keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Proposal:
    """``value`` for our dotted ``key``, which holds unless the run says otherwise; ``said_by`` is whose it is.

    What is only ``derived`` from other values contradicts nothing.
    """

    key: str
    value: Any
    said_by: str
    derived: bool = False
