"""Judges canaries by their rules while they run, every second, beside the requests: aborts them, or lets them grow."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from adapters.errors import AdapterError
from server.adapter_key import AdapterKey
from server.catalog.background import Repeated
from server.catalog.canary import CanaryControl
from server.catalog.canary_rules import Evidence, Verdict, judge
from server.catalog.registry import Registry
from server.catalog.traffic import Canary, Parts
from server.errors import ServerError

logger = logging.getLogger(__name__)
_audit = logging.getLogger("server.audit")
SECONDS = 1.0


@dataclass(frozen=True)
class _Stage:
    """A weight that a canary has: since when here, and how many requests it had answered then."""

    version: int
    parts: Parts
    since: float
    requests: int


class CanaryWatch:
    """Judges by what this server has seen. Where several share the requests, each may abort a canary of all."""

    def __init__(self, registry: Registry, control: CanaryControl) -> None:
        self._registry = registry
        self._control = control
        self._figures = control.figures
        self._stages: dict[str, _Stage] = {}
        self._told: set[AdapterKey] = set()
        self._looking = Repeated(self.look, SECONDS, "canaries are not judged")

    def start(self) -> None:
        """Look from now on."""
        self._looking.start()

    async def close(self) -> None:
        """Look no more."""
        await self._looking.close()

    async def look(self) -> None:
        """Judge all canaries once."""
        names = self._registry.split_names()
        self._figures.prune()
        self._stages = {name: stage for name, stage in self._stages.items() if name in names}
        for name in names:
            try:
                await self._look_at(name)
            except (ServerError, AdapterError) as error:
                logger.warning("the canary of %s cannot be changed now: %s", name, error)
            except Exception:
                logger.exception("the canary of %s cannot be judged", name)
            await asyncio.sleep(0)

    def verdicts(self, name: str, canary: Canary) -> list[Verdict]:
        """What each of its rules says of a canary now."""
        live = self._registry.live_number(name) or 0
        seconds = canary.rules.window_seconds
        return judge(canary.rules, self._evidence(name, canary.version, seconds), self._evidence(name, live, seconds))

    def _evidence(self, name: str, version: int, seconds: float) -> Evidence:
        return Evidence(
            self._figures.figures(name, version, seconds),
            self._figures.agreement(name, version, seconds),
            self._registry.traffic(name).scores_of(version),
        )

    async def _look_at(self, name: str) -> None:
        self._report_failed(name)
        for canary in self._registry.traffic(name).canaries:
            verdicts = self.verdicts(name, canary)
            breached = [str(verdict) for verdict in verdicts if verdict.breached]
            if breached:
                reason = "; ".join(breached)
                if await self._control.abort(name, canary.version, reason=reason, judged=canary):
                    _tell("abort", name, canary.version, reason)
            elif canary.steps and self._is_due(name, canary) and all(v.value is not None for v in verdicts):
                await self._grow(name, canary)

    async def _grow(self, name: str, canary: Canary) -> None:
        weight = canary.steps[0]
        if await self._control.advance(name, canary):
            _tell("promote" if weight >= 1 else "canary", name, canary.version, f"the step to {weight:g} was due")

    def _is_due(self, name: str, canary: Canary) -> bool:
        """Whether a canary has had its weight for long enough, as seen from here."""
        stage, seen = self._stages.get(name), self._figures.of(name, canary.version)
        if stage is None or (stage.version, stage.parts) != (canary.version, canary.parts):
            stage = self._stages[name] = _Stage(canary.version, canary.parts, self._figures.now(), seen.requests)
        served = seen.requests - stage.requests
        return self._figures.now() - stage.since >= canary.step_seconds and served >= canary.step_requests

    def _report_failed(self, name: str) -> None:
        """One line for each version that should have requests and cannot be served."""
        for number in self._registry.traffic(name).versions:
            key = self._registry.version(name, number).key
            reason = self._registry.failure(key)
            if reason is None:
                self._told.discard(key)
            elif key not in self._told:
                self._told.add(key)
                logger.warning("canary %s cannot be served (%s): the live version answers its requests", key, reason)


def _tell(action: str, name: str, version: int, reason: str) -> None:
    """An audit line, as a change by an operator has."""
    fields = {"action": action, "adapter": name, "client": None, "request_id": None, "version": version,
              "reason": reason, "automatic": True}  # fmt: skip
    _audit.info("adapter %s: %s", name, action, extra={"fields": fields})
