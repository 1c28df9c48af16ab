"""Time to first token and inter-token latency, by what was served and by phase of the demo."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from hotswap.demo.asking import Answer


@dataclass(frozen=True)
class Phase:
    """A named stretch of time, in ``time.perf_counter`` seconds."""

    name: str
    start: float
    end: float

    def holds(self, moment: float) -> bool:
        """Whether ``moment`` lies in this phase."""
        return self.start <= moment < self.end


@dataclass(frozen=True)
class Latency:
    """Figures in ms over the requests that began, and the gaps that ended, in one phase; None where there were none."""

    requests: int
    ttft_p50: float | None
    ttft_p95: float | None
    itl_p50: float | None
    itl_p95: float | None
    itl_max: float | None

    def as_dict(self) -> dict[str, float | int | None]:
        """For JSON."""
        return asdict(self)


def latency_in(phase: Phase, answers: Iterable[Answer]) -> Latency:
    """The latencies of ``answers`` in ``phase``."""
    first: list[float] = []
    gaps: list[float] = []
    for answer in answers:
        if answer.stamps and phase.holds(answer.start):
            first.append(answer.stamps[0] - answer.start)
        pairs = zip(answer.stamps, answer.stamps[1:], strict=False)
        gaps += [after - before for before, after in pairs if phase.holds(after)]
    return Latency(
        requests=len(first),
        ttft_p50=_ms(first, 50),
        ttft_p95=_ms(first, 95),
        itl_p50=_ms(gaps, 50),
        itl_p95=_ms(gaps, 95),
        itl_max=_ms(gaps, 100),
    )


def _ms(seconds: Sequence[float], percent: int) -> float | None:
    if not seconds:
        return None
    return round(percentile(seconds, percent) * 1e3, 1)


def percentile(values: Sequence[float], percent: int) -> float:
    """The percentile by linear interpolation."""
    if len(values) == 1 or percent == 100:
        return max(values)
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
