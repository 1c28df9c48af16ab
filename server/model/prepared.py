"""An adapter that was read and checked, on its way into the runner."""

from __future__ import annotations

from dataclasses import dataclass, field

from adapters.ops import Adapter


@dataclass(frozen=True, eq=False)
class PreparedAdapter:
    """``seconds`` were spent by stage (read, validate, copy); ``warnings`` are for whoever uploaded it."""

    adapter: Adapter
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
