"""Canaries and shadows as clients write them, and as they are told of."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import ConfigDict, Field, field_validator

from server.api.context import ServerContext
from server.api.wire_fields import Integer, Wire
from server.catalog.canary_plan import CanaryPlan, ShadowPlan, TrafficPlan
from server.catalog.canary_rules import MAX_MIN_REQUESTS, Figures, Rules, Verdict, parse_gate, percentile
from server.catalog.traffic import MAX_CANARIES, MAX_SCORES, Canary, Shadow, Traffic

Number = Annotated[Integer, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(ge=0, le=1)]
Ratio = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(max_length=256)]
MAX_GATES, MAX_STEPS = 16, 16
MAX_SECONDS = 1e7


class _Exact(Wire):
    """A misspelt field here would be a rule that never judges: unknown ones are refused."""

    model_config = ConfigDict(extra="forbid")


class RulesBody(_Exact):
    """What ends a canary by itself; see ``Rules``."""

    min_requests: Annotated[Integer, Field(ge=1, le=MAX_MIN_REQUESTS)] = 50
    window_seconds: Annotated[float, Field(ge=1, le=86_400)] = 300.0
    max_error_rate: Rate | None = None
    max_error_rate_above_live: Rate | None = None
    max_ttft_p50_ratio: Ratio | None = None
    max_ttft_p95_ratio: Ratio | None = None
    max_itl_p50_ratio: Ratio | None = None
    max_itl_p95_ratio: Ratio | None = None
    min_agreement: Rate | None = None
    min_exact: Rate | None = None
    max_shadow_latency_ratio: Ratio | None = None
    gates: Annotated[list[Text], Field(max_length=MAX_GATES)] = Field([])

    @field_validator("gates")
    @classmethod
    def _check_gates(cls, gates: list[str]) -> list[str]:
        for gate in gates:
            parse_gate(gate)
        return gates

    def rules(self) -> Rules:
        """The rules."""
        return Rules(**{**self.model_dump(), "gates": tuple(self.gates)})


class CanaryBody(_Exact):
    """One canary. ``version`` left out is the one there is; rules and steps left out stay as they are."""

    version: Number | None = None
    weight: Weight
    rules: RulesBody | None = None
    steps: Annotated[list[Weight], Field(max_length=MAX_STEPS)] | None = None
    step_seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)] | None = None
    step_requests: Annotated[Integer, Field(ge=0)] | None = None

    def plan(self) -> CanaryPlan:
        """As the catalog takes it."""
        given = self.model_fields_set
        rules = self.rules.rules() if self.rules else Rules()
        return CanaryPlan(
            version=self.version,
            weight=self.weight,
            rules=rules if "rules" in given else UNSET,
            steps=tuple(self.steps or ()) if "steps" in given else UNSET,
            step_seconds=self.step_seconds or 0.0 if "step_seconds" in given else UNSET,
            step_requests=self.step_requests or 0 if "step_requests" in given else UNSET,
        )


class ShadowBody(_Exact):
    """A shadow; ``version`` left out is the one there is, else the canary's."""

    version: Number | None = None
    weight: Weight

    def plan(self) -> ShadowPlan:
        """As the catalog takes it."""
        return ShadowPlan(version=self.version, weight=self.weight)


class TrafficFields(Wire):
    """The fields of ``PATCH /v1/adapters/{name}`` that share out its requests; null ends a canary, or a shadow."""

    canary: CanaryBody | Annotated[list[CanaryBody], Field(max_length=MAX_CANARIES)] | None = None
    shadow: ShadowBody | None = None

    @property
    def shares_given(self) -> list[str]:
        """Which of them are to be changed."""
        return [name for name in TrafficFields.model_fields if name in self.model_fields_set]

    def traffic_plan(self) -> TrafficPlan:
        """As the catalog takes it."""
        given = self.shares_given
        listed = self.canary if isinstance(self.canary, list) else [self.canary] if self.canary else []
        canaries: list[CanaryPlan] | UnsetType = [one.plan() for one in listed] if "canary" in given else UNSET
        shadow = self.shadow.plan() if self.shadow else None
        return TrafficPlan(canaries=canaries, shadow=shadow if "shadow" in given else UNSET)


class ScoresBody(Wire):
    """``POST /v1/adapters/{name}/scores``: what an evaluator has measured; of the canary unless it says otherwise."""

    version: Number | None = None
    scores: Annotated[
        dict[Annotated[str, Field(pattern=r"^\w{1,64}$")], float], Field(min_length=1, max_length=MAX_SCORES)
    ]


# ---- told of ----


def traffic_body(context: ServerContext, name: str) -> dict[str, Any] | None:
    """How the requests to ``name`` are shared out, and what was seen of it here; None: all go to the live version."""
    traffic, live = context.registry.traffic(name), context.registry.live_number(name)
    if not traffic.is_split:
        if traffic == Traffic():
            return None
        return {"live": None, "canaries": [], "shadow": None, **_notes(traffic)}
    rest = 1 - sum(canary.weight for canary in traffic.canaries)
    seconds = max((canary.rules.window_seconds for canary in traffic.canaries), default=Rules().window_seconds)
    return {
        "live": {"version": live, "weight": round(rest, 6), **_seen(context, name, live or 0, seconds)},
        "canaries": [_canary(context, name, canary) for canary in traffic.canaries],
        "shadow": _shadow(context, name, traffic.shadow) if traffic.shadow else None,
        **_notes(traffic),
    }


def _notes(traffic: Traffic) -> dict[str, Any]:
    """What evaluators have said, and what became of the last canary."""
    return {
        "scores": traffic.scores,
        "ended": msgspec.to_builtins(traffic.ended),
    }


def _canary(context: ServerContext, name: str, canary: Canary) -> dict[str, Any]:
    key = context.registry.version(name, canary.version).key
    rules = {rule: value for rule, value in msgspec.to_builtins(canary.rules).items() if value is not None}
    seen = context.traffic.figures.of(name, canary.version)
    return {
        "version": canary.version,
        "weight": canary.weight,
        "began": int(canary.began),
        "failure": context.registry.failure(key),
        "rules": rules,
        "verdicts": [_verdict(verdict) for verdict in context.watch.verdicts(name, canary)],
        "steps": list(canary.steps),
        "step_seconds": canary.step_seconds,
        "step_requests": canary.step_requests,
        "fallbacks": seen.fallbacks,
        **_seen(context, name, canary.version, canary.rules.window_seconds),
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    """``value`` null: too few requests yet, or no score."""
    return {
        "rule": verdict.rule,
        "bound": verdict.bound,
        "value": verdict.value,
        "requests": verdict.count,
        "breached": verdict.breached,
    }


def _seen(context: ServerContext, name: str, version: int, seconds: float) -> dict[str, Any]:
    """Counts since the split began, and a window of the last requests, as this server has seen them."""
    seen = context.traffic.figures.of(name, version)
    window = context.traffic.figures.figures(name, version, seconds)
    return {"requests": seen.requests, "errors": seen.errors, "window": {"seconds": seconds, **_figures(window)}}


def _figures(window: Figures) -> dict[str, Any]:
    return {
        "requests": window.requests,
        "error_rate": window.error_rate,
        "ttft_p50": percentile(window.ttft, 50),
        "ttft_p95": percentile(window.ttft, 95),
        "itl_p50": percentile(window.itl, 50),
        "itl_p95": percentile(window.itl, 95),
    }


def _shadow(context: ServerContext, name: str, shadow: Shadow) -> dict[str, Any]:
    figures = context.traffic.figures
    seen, found = figures.of(name, shadow.version), figures.agreement(name, shadow.version, float("inf"))
    return {
        "version": shadow.version,
        "weight": shadow.weight,
        "began": int(shadow.began),
        "failure": context.registry.failure(context.registry.version(name, shadow.version).key),
        "copies": seen.copies,
        "dropped": seen.dropped,
        "failed": seen.failed_copies,
        "compared": len(found.shares),
        "agreement": found.mean,
        "exact": found.exact_share,
        "latency_ratio": percentile(found.ratios, 50),
    }
