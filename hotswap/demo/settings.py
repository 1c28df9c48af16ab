"""How large the demo is: chosen so that it takes minutes on two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hotswap.demo.tasks import CONTACTS, DATES, Task


@dataclass(frozen=True)
class Recipe:
    """One training run: ``method`` as ``hotswap train`` takes it, and how many steps of eight rows."""

    name: str
    task: Task
    method: str
    steps: int


FIRST = Recipe("contacts-v1", CONTACTS, "lora", steps=6)
BETTER = Recipe("contacts-v2", CONTACTS, "lora", steps=40)
PREFIX = Recipe("dates", DATES, "prefix", steps=50)
RECIPES = (FIRST, BETTER, PREFIX)
BATCH_SIZE = 8


@dataclass(frozen=True)
class Settings:
    """What may differ between two runs of the demo.

    ``base`` and ``quantize`` as for ``hotswap serve``. ``held_out`` rows of each task are scored, ``lone_rows`` of them
    asked again with nothing else running. ``streams`` of base traffic run all the time. ``reuse`` takes the adapters
    that an earlier run left in ``out``.
    """

    out: Path
    base: str
    quantize: str = "nf4"
    seed: int = 0
    held_out: int = 24
    lone_rows: int = 3
    streams: int = 2
    traffic_tokens: int = 24
    settle_seconds: float = 8.0
    reuse: bool = False
