"""What an operator wants of canaries and shadows, and the shares of a name that come of it. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from server.catalog.canary_rules import Rules, parse_gate
from server.catalog.traffic import MAX_CANARIES, Canary, Ended, Shadow, Traffic, with_canaries, without
from server.catalog.versions import VersionHistory
from server.errors import ConflictError, InvalidRequestError, UnknownModelError

T = TypeVar("T")
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class CanaryPlan:
    """A canary as it is asked for. ``version`` None: the one there is. What is UNSET stays as it is, or is not set."""

    version: int | None = None
    weight: float
    rules: Rules | UnsetType = UNSET
    steps: tuple[float, ...] | UnsetType = UNSET
    step_seconds: float | UnsetType = UNSET
    step_requests: int | UnsetType = UNSET


@dataclass(frozen=True, kw_only=True)
class ShadowPlan:
    """A shadow as it is asked for. ``version`` None: that of the one there is, else the canary's."""

    version: int | None = None
    weight: float


@dataclass(frozen=True, kw_only=True)
class TrafficPlan:
    """What is to change. ``canaries`` are all that there shall be."""

    canaries: Sequence[CanaryPlan] | UnsetType = UNSET
    shadow: ShadowPlan | UnsetType | None = UNSET


def planned(name: str, history: VersionHistory, plan: TrafficPlan) -> Traffic:
    """How the requests to ``name`` are to be shared out. Raises InvalidRequestError, UnknownModelError or ConflictError
    for what cannot be."""
    traffic = _planned(history.traffic, plan)
    _check_versions(name, history, traffic)
    return traffic


def told(plan: TrafficPlan) -> dict[str, Any]:
    """``plan`` for the record of changes."""
    told: dict[str, Any] = {}
    if not isinstance(plan.canaries, UnsetType):
        told["canaries"] = [_given(one) for one in plan.canaries]
    if not isinstance(plan.shadow, UnsetType):
        told["shadow"] = None if plan.shadow is None else _given(plan.shadow)
    return told


def _given(plan: CanaryPlan | ShadowPlan) -> dict[str, Any]:
    fields = ((field, getattr(plan, field)) for field in plan.__dataclass_fields__)
    return {field: msgspec.to_builtins(value) for field, value in fields if value not in (None, UNSET)}


def shared_with(traffic: Traffic) -> list[int]:
    """The versions that have a part, the one to be told of first."""
    numbers: Iterable[int] = (canary.version for canary in traffic.canaries)
    return list(dict.fromkeys([*numbers, *([traffic.shadow.version] if traffic.shadow else [])]))


def _planned(before: Traffic, plan: TrafficPlan) -> Traffic:
    """``before`` as it is to be. Raises InvalidRequestError for what cannot be."""
    traffic = before
    if not isinstance(plan.canaries, UnsetType):
        wanted = [_wanted(before, one) for one in plan.canaries]
        weights = [one.weight for one in plan.canaries]
        _check_canaries(wanted, weights)
        traffic = with_canaries(before, wanted, weights)
        kept = {canary.version: canary for canary in before.canaries}
        canaries = tuple(_begun(canary, kept.get(canary.version)) for canary in traffic.canaries)
        traffic = msgspec.structs.replace(traffic, canaries=canaries)
    if not isinstance(plan.shadow, UnsetType):
        traffic = msgspec.structs.replace(traffic, shadow=_shadow(traffic, plan.shadow))
    if traffic.is_split and not traffic.salt:
        traffic = with_canaries(traffic, traffic.canaries, [canary.weight for canary in traffic.canaries])
    ended = [number for number in shared_with(before) if number not in traffic.versions]
    if ended:
        told = Ended(version=ended[0], outcome="aborted", reason="taken out by an operator", at=time.time())
        traffic = without(traffic, ended, told)
    return traffic


def _wanted(before: Traffic, plan: CanaryPlan) -> Canary:
    version = plan.version
    if version is None:
        if len(before.canaries) != 1:
            raise InvalidRequestError("say which version is to be the canary", param="canary.version")
        version = before.canaries[0].version
    known = before.canary(version) or Canary(version=version, parts=(), began=0.0)
    return Canary(
        version=version,
        parts=(),
        began=0.0,
        rules=_or(plan.rules, known.rules),
        steps=_or(plan.steps, tuple(step for step in known.steps if step > plan.weight)),
        step_seconds=_or(plan.step_seconds, known.step_seconds),
        step_requests=_or(plan.step_requests, known.step_requests),
    )


def _or(given: T | UnsetType, otherwise: T) -> T:
    return otherwise if isinstance(given, UnsetType) else given


def _begun(canary: Canary, before: Canary | None) -> Canary:
    """``canary`` with the time since when it has had its share."""
    goes_on = before is not None and before.weight == canary.weight
    return msgspec.structs.replace(canary, began=before.began if before and goes_on else time.time())


def _shadow(traffic: Traffic, plan: ShadowPlan | None) -> Shadow | None:
    if plan is None:
        return None
    version, before = plan.version, traffic.shadow
    if version is None:
        known = [before.version] if before else [canary.version for canary in traffic.canaries]
        if len(known) != 1:
            raise InvalidRequestError("say which version is to be the shadow", param="shadow.version")
        version = known[0]
    goes_on = before is not None and (before.version, before.weight) == (version, plan.weight)
    return Shadow(version=version, weight=plan.weight, began=before.began if before and goes_on else time.time())


def _check_canaries(wanted: Sequence[Canary], weights: Sequence[float]) -> None:
    numbers = [canary.version for canary in wanted]
    if len(set(numbers)) < len(numbers):
        raise InvalidRequestError("a version is named twice among the canaries", param="canary")
    if len(numbers) > MAX_CANARIES:
        raise InvalidRequestError(f"a name may have {MAX_CANARIES} canaries at once", param="canary")
    if sum(weights) > 1 + _ROUNDING:
        raise InvalidRequestError(
            f"the weights of the canaries come to {sum(weights):g}; together they may have 1, the live version has "
            "the rest",
            param="canary.weight",
        )
    for canary, weight in zip(wanted, weights, strict=True):
        _check_steps(canary, weight, alone=len(wanted) == 1)
        for gate in canary.rules.gates:
            try:
                parse_gate(gate)
            except ValueError as error:
                raise InvalidRequestError(f"rules.gates: {error}", param="canary.rules.gates") from error


def _check_steps(canary: Canary, weight: float, *, alone: bool) -> None:
    if not canary.steps:
        return
    if not alone:
        raise InvalidRequestError("steps are for a canary that is the only one", param="canary.steps")
    line = (weight, *canary.steps)
    if any(after <= before for before, after in zip(line, canary.steps, strict=False)) or canary.steps[-1] > 1:
        raise InvalidRequestError(
            "steps are the weights that follow, each larger than the one before, up to 1", param="canary.steps"
        )
    if not (canary.step_seconds or canary.step_requests):
        raise InvalidRequestError(
            "say when the next step is due: step_seconds, step_requests or both", param="canary.steps"
        )


def _check_versions(name: str, history: VersionHistory, traffic: Traffic) -> None:
    """Raise what is wrong with ``traffic`` for the versions that there are of ``name``."""
    for number in sorted(traffic.versions):
        if history.get(number) is None:
            raise UnknownModelError(f"The adapter {name!r} has no version '{number}'")
        if number == history.live:
            raise ConflictError(
                f"{name}@{number} is live: it has the rest of the requests already",
                param="version",
                code="version_is_live",
            )
    for canary in traffic.canaries:
        shadowed = traffic.shadow is not None and traffic.shadow.version == canary.version
        if canary.rules.need_shadow and not shadowed:
            raise InvalidRequestError(
                f"rules on agreement and on the latency of a shadow need one of version {canary.version}: "
                "give `shadow` with that version too",
                param="canary.rules",
            )
