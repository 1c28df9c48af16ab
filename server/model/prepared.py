"""An adapter that was read and checked, on its way into the runner."""

from __future__ import annotations

from dataclasses import dataclass, field

from adapters.golden import Probe
from adapters.ops import Adapter


@dataclass(frozen=True, eq=False)
class Trial:
    """What an adapter is held against before requests may use it; distances as in ``server.model.parity``.

    ``probes`` are the trainer's recorded logits, none for packages without. ``golden_tolerance`` is how far from them
    the adapter may be, ``golden_warning`` from where on its maker should know, ``batch_tolerance`` how much it may
    change with what else is in the batch.
    """

    probes: tuple[Probe, ...]
    golden_tolerance: float
    golden_warning: float
    batch_tolerance: float


@dataclass(frozen=True, eq=False)
class PreparedAdapter:
    """``seconds`` were spent by stage (read, validate, copy); ``warnings`` are for whoever uploaded it."""

    adapter: Adapter
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    trial: Trial | None = None
