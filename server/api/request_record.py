"""What is remembered of one request while it runs, for its line in the log and its spans."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.types import Scope

from server.api.body_limits import route_path
from server.api.error_responses import INTERNAL_ERROR, to_api_error
from server.catalog.places import LOAD, ColdStart, stage_attributes
from server.metrics import SequenceTimes
from server.traces import Attribute, Span, Trace

log = logging.getLogger("server.requests")
MAX_PATH = 500  # characters of a path that the log repeats
MAX_SEQUENCES = 16  # of a request that have spans of their own
_QUIET = ("/health", "/ready", "/metrics")
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_FACTS = {  # of the log line, as attributes of the span
    "key": "hotswap.key.id",
    "adapter": "hotswap.adapter",
    "model": "gen_ai.response.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "queue_seconds": "gen_ai.latency.time_in_queue",
    "first_token_seconds": "gen_ai.latency.time_to_first_token",
    "token_seconds": "gen_ai.latency.time_per_output_token",
    "load_seconds": "hotswap.adapter.load_seconds",
    "error": "error.type",
}


@dataclass
class RequestRecord:
    """What the line of one request will say; routes add ``facts``, and the ``failure`` that is nobody's mistake.

    ``asked``: attributes of the span that only the request knows. ``load``: how its adapter was loaded for it.
    ``parts``: what else was done for it and takes time.
    """

    id: str
    trace: Trace
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    facts: dict[str, object] = field(default_factory=dict)
    failure: Exception | None = None
    asked: dict[str, Attribute] = field(default_factory=dict)
    sequences: list[SequenceTimes] = field(default_factory=list)
    load: ColdStart | None = None
    parts: Sequence[Span] = ()

    def note_error(self, error: Exception) -> None:
        """An error was answered in a stream that has begun, or instead of any other answer."""
        code = to_api_error(error).code
        self.facts["error"] = code
        if code == INTERNAL_ERROR:
            self.failure = error

    def note_times(self, sequences: Sequence[SequenceTimes], load: ColdStart | None) -> None:
        """When what happened to the sequences, which have ended or are given up."""
        self.sequences, self.load = list(sequences), load
        firsts = [one.first - self.started for one in sequences if one.first is not None]
        queued = [one.queued_seconds for one in sequences if one.queued_seconds is not None]
        several = [(one, one.first) for one in sequences if one.first is not None and one.tokens > 1]
        tokens = sum(one.tokens - 1 for one, _ in several)
        timings = {
            "load_seconds": sum(load.seconds.values()) if load is not None else None,
            "queue_seconds": max(queued, default=None),
            "first_token_seconds": min(firsts, default=None) if any(one.tokens for one in sequences) else None,
            "token_seconds": sum(one.last - first for one, first in several) / tokens if tokens else None,
        }
        self.facts.update((name, round(value, 4)) for name, value in timings.items() if value is not None)
        if sequences:
            self.facts["finish_reasons"] = sorted({one.reason for one in sequences})

    def end(self, scope: Scope, route: str) -> None:
        """The request, of that ``route``, has ended: write its line, with the traceback where we are at fault."""
        path = scope["path"][:MAX_PATH]
        now = time.perf_counter()
        quiet = route_path(scope) in _QUIET
        level = logging.ERROR if self.failure else logging.DEBUG if quiet else logging.INFO
        entry = {
            "request_id": self.id,
            **({"trace_id": self.trace.id} if self.trace.id else {}),
            "method": scope["method"],
            "path": path,
            "status": self.status,
            "seconds": round(now - self.started, 4),
            **self.facts,
        }
        extra = {"fields": entry}
        log.log(level, "%s %s %d", scope["method"], path, self.status, exc_info=self.failure, extra=extra)
        if self.trace.is_recording:
            self.trace.end(self._whole(scope["method"], route, now), [*self._own_parts(), *self.parts], self._error)

    @property
    def _error(self) -> str:
        """What went wrong that is no mistake of the client's, as conventions for servers have it."""
        return str(self.facts.get("error") or self.status) if self.status >= 500 or self.failure else ""

    def _whole(self, method: str, route: str, now: float) -> Span:
        attributes: dict[str, Attribute] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": self.status,
            "hotswap.request.id": self.id,
            **self.asked,
        }
        for fact, name in _FACTS.items():
            value = self.facts.get(fact)
            if isinstance(value, str | int | float):
                attributes[name] = value
        operation = _OPERATIONS.get(route)
        if operation is None or "gen_ai.request.model" not in self.asked:
            return Span(f"{method} {route}", self.started, now, attributes)
        attributes |= {"gen_ai.operation.name": operation, "gen_ai.provider.name": "hotswap"}
        if reasons := [one.reason for one in self.sequences]:
            attributes["gen_ai.response.finish_reasons"] = reasons
        return Span(f"{operation} {self.asked['gen_ai.request.model']}", self.started, now, attributes)

    def _own_parts(self) -> Iterator[Span]:
        if self.load is not None:
            seconds: Mapping[str, float] = self.load.seconds
            yield Span(LOAD, self.load.ended - sum(seconds.values()), self.load.ended, stage_attributes(seconds))
        if self.sequences:
            yield Span("prepare", self.started, self.sequences[0].submitted)
        for index, one in enumerate(self.sequences[:MAX_SEQUENCES]):
            place: dict[str, Attribute] = {"hotswap.sequence": index}
            if one.first is None:
                yield Span("queue", one.submitted, one.ended, place)
                continue
            scheduled = min(one.submitted + (one.queued_seconds or 0.0), one.first)
            yield Span("queue", one.submitted, scheduled, place)
            yield Span("prefill", scheduled, one.first, place)
            if one.tokens:
                yield Span("decode", one.first, one.last, {**place, "gen_ai.usage.output_tokens": one.tokens})
