"""Changes of how the requests to a name are shared out: canaries and shadows begin, grow, are promoted or aborted.

Each is one assignment, as an activation is: a request keeps the version that it was drawn for. Knows no HTTP and no
requests. Asyncio-confined.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from server.adapter_key import AdapterKey
from server.catalog.activating import Activation
from server.catalog.canary_figures import CanaryFigures
from server.catalog.canary_plan import CanaryPlan, TrafficPlan, planned, shared_with, told
from server.catalog.events import Event
from server.catalog.guard import Guard, state_of
from server.catalog.lifecycle import AdapterLifecycle
from server.catalog.traffic import MAX_SCORES, Canary, Ended, Traffic, with_scores, without
from server.catalog.versions import VersionHistory
from server.errors import ConflictError, InvalidRequestError, UnknownModelError

logger = logging.getLogger(__name__)


class _Unchanged(Exception):  # noqa: N818 - an outcome
    """There is nothing to change after all."""


class CanaryControl:
    """The changes of one server. ``figures`` are what it has seen of the versions."""

    def __init__(self, lifecycle: AdapterLifecycle, figures: CanaryFigures) -> None:
        self.figures = figures
        self._lifecycle = lifecycle
        self._registry = lifecycle.registry

    async def change(
        self, name: str, plan: TrafficPlan, *, guard: Guard | None = None, judged: Canary | None = None
    ) -> bool:
        """Share out the requests to ``name`` as ``plan`` says; False when they are already, or ``judged`` is no more.

        A version that is not resident is loaded first. Raises as ``AdapterLifecycle.activate``, and
        InvalidRequestError for a plan that makes no sense.
        """

        def mutate(history: VersionHistory) -> Traffic:
            _check_judged(history.traffic, judged)
            traffic = planned(name, history, plan)
            if traffic == history.traffic:
                raise _Unchanged
            history.share_out(traffic)
            return traffic

        await self._lifecycle.refresh(name)
        self._registry.live(name)  # or there is nothing to compare with
        known = self._registry.history(name) or VersionHistory()
        event = Event("canary", None, {**told(plan), "automatic": judged is not None})
        try:
            _check_judged(known.traffic, judged)
            needs = planned(name, known, plan).versions
            traffic = await self._lifecycle.change(name, mutate, event, guard=guard, needs=needs)
        except _Unchanged:
            self._tell(name, guard)
            return False
        shares = ", ".join(f"{canary.version}: {canary.weight:g}" for canary in traffic.canaries) or "none"
        logger.info("requests to %s: canaries %s, shadow %s", name, shares, traffic.shadow)
        return True

    async def promote(
        self, name: str, version: int | None = None, *, guard: Guard | None = None, judged: Canary | None = None
    ) -> Activation:
        """Let ``name`` serve its canary, ``version`` if there are several: an activation, which ends all canaries.

        Only if it is still as it was ``judged``. Raises as ``AdapterLifecycle.activate``.
        """

        def check(history: VersionHistory) -> None:
            _check_judged(history.traffic, judged)
            _canary(name, history, number)

        await self._lifecycle.refresh(name)
        live, known = self._registry.live(name), self._registry.history(name) or VersionHistory()
        try:
            _check_judged(known.traffic, judged)
            number = live.key.version if version == live.key.version else _canary(name, known, version).version
            return await self._lifecycle.activate(name, number, guard=guard, action="promote", check=check)
        except _Unchanged:
            return Activation(live, changed=False)

    async def abort(
        self,
        name: str,
        version: int | None = None,
        *,
        reason: str = "",
        guard: Guard | None = None,
        judged: Canary | None = None,
    ) -> list[int]:
        """End canary and shadow, of ``version`` or of all; the live version answers alone. Returns which have ended.

        With ``judged`` it is no operator who does so, and only if the canary is still as it was judged. Raises
        UnknownModelError, or what ``guard`` does.
        """
        reason = reason or "by an operator"

        def mutate(history: VersionHistory) -> list[int]:
            _check_judged(history.traffic, judged)
            gone = [number for number in shared_with(history.traffic) if version in (None, number)]
            if not gone:
                raise _Unchanged
            ended = Ended(version=gone[0], outcome="aborted", reason=reason, at=time.time(), automatic=bool(judged))
            history.share_out(without(history.traffic, gone, ended))
            return gone

        await self._lifecycle.refresh(name)
        if version is None:
            self._registry.versions(name)  # or there is no such name
        else:
            self._registry.version(name, version)
        event = Event("abort", version, {"reason": reason, "automatic": judged is not None})
        try:
            gone = await self._lifecycle.change(name, mutate, event, guard=guard)
        except _Unchanged:
            self._tell(name, guard)
            return []
        logger.warning("canary %s@%d aborted: %s", name, gone[0], reason)
        return gone

    async def score(
        self, name: str, version: int | None, scores: Mapping[str, float], *, guard: Guard | None = None
    ) -> AdapterKey:
        """Note what an evaluator has measured of ``version`` (None: of the canary). Raises UnknownModelError."""

        def mutate(history: VersionHistory) -> None:
            traffic = with_scores(history.traffic, key.version, scores)
            if len(traffic.scores_of(key.version)) > MAX_SCORES:
                raise InvalidRequestError(f"at most {MAX_SCORES} metrics are kept of a version", param="scores")
            if history.get(key.version) is None:
                raise UnknownModelError(f"{key} was deleted meanwhile")
            history.share_out(traffic)

        await self._lifecycle.refresh(name)
        self._registry.versions(name)  # or there is no such name
        number = _canary(name, self._registry.history(name) or VersionHistory(), None).version if version is None else 0
        key = self._registry.version(name, version or number).key
        await self._lifecycle.change(name, mutate, Event("score", key.version, {"scores": dict(scores)}), guard=guard)
        return key

    async def advance(self, name: str, judged: Canary) -> bool:
        """Give a canary the next of its weights, or promote it; False when it is no longer as it was ``judged``."""
        weight, later = judged.steps[0], judged.steps[1:]
        if weight >= 1:
            return (await self.promote(name, judged.version, judged=judged)).changed
        grown = CanaryPlan(version=judged.version, weight=weight, steps=later)
        return await self.change(name, TrafficPlan(canaries=[grown]), judged=judged)

    def _tell(self, name: str, guard: Guard | None) -> None:
        """Tell a guard what the name is, where nothing was changed."""
        if guard is not None:
            guard.after = state_of(name, self._registry.history(name))


def _check_judged(traffic: Traffic, judged: Canary | None) -> None:
    if judged is not None and judged not in traffic.canaries:
        raise _Unchanged


def _canary(name: str, history: VersionHistory, number: int | None) -> Canary:
    """The canary that is meant. Raises UnknownModelError, ConflictError, or InvalidRequestError for one of several."""
    if number is not None and history.get(number) is None:
        raise UnknownModelError(f"The adapter {name!r} has no version {number}")
    found = [canary for canary in history.traffic.canaries if number in (None, canary.version)]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(str(canary.version) for canary in found)
        raise InvalidRequestError(f"{name!r} has the canaries {several}; say which `version`", param="version")
    what = f"version {number} of {name!r} is no canary" if number is not None else f"{name!r} has no canary"
    raise ConflictError(
        f'{what}; to begin one send PATCH /v1/adapters/{name} with {{"canary": {{"version": N, "weight": 0.05}}}}',
        param="version",
        code="no_canary",
    )
