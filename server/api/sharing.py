"""Whose a request is: which limits hold for it, what part of the engine is its, and how long it may take.

Limits and shares are those of a name, as its operator set them, and those of the key that the request bears.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from fastapi import Request

from server.adapter_key import AdapterKey
from server.api.auth import Caller
from server.api.context import ServerContext
from server.api.generation import Generation
from server.api.job import Job
from server.api.limits import RequestTicket, Subject, merged
from server.api.pooling.job import PooledJob
from server.api.pooling.wire import PooledBody
from server.api.wire import MAX_TIMEOUT, ChatCompletionBody, SamplingBody
from server.catalog.versions import NameSettings
from server.errors import InvalidRequestError, RequestTimeoutError
from server.settings import ServerConfig

AnyJob = TypeVar("AnyJob", Job, PooledJob)
BEHIND_ALL = 10_000  # more than any two priorities that an operator may set lie apart
TIMEOUT_HEADER = "x-request-timeout"


@dataclass(frozen=True)
class Share:
    """What a request is counted under, and its part of the engine."""

    names: tuple[Subject, ...]
    key: Subject
    caller: Caller
    weight: float
    priority: int

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Whose limits hold."""
        return *self.names, self.key

    def job(self, job: AnyJob, deadline: float | None) -> AnyJob:
        """``job``, as the engine is to see it. Raises RequestTimeoutError when it is too late for it."""
        if deadline is not None and asyncio.get_running_loop().time() >= deadline:
            raise RequestTimeoutError("the request took longer than it may before it was begun; send it again later")
        return replace(
            job,
            cache_salt=self.caller.salted(job.cache_salt),
            tenant=self.key.name,
            weight=self.weight,
            priority=self.priority,
            deadline=deadline,
        )

    def most_tokens(self, job: Job, body: SamplingBody) -> int | None:
        """How many tokens of output the request may make; None where it did not say so."""
        asked = body.max_completion_tokens if isinstance(body, ChatCompletionBody) else None
        if isinstance(body, ChatCompletionBody) and not (asked or body.max_tokens):
            return None
        return len(job.prompts) * job.n * job.sampling.max_tokens


def share_of(caller: Caller, context: ServerContext, adapter: AdapterKey | None) -> Share:
    """The share of a request of ``caller`` to ``adapter``. All who have no key, or the only one, are one.

    A combination counts under all its names, and comes no sooner than each of them would.
    """
    config = context.config
    names = [None] if adapter is None else dict.fromkeys(version.name for version in adapter.versions)
    settings = {name: _settings(context, name) for name in names}
    return Share(
        names=tuple(
            Subject("model", context.base_name if name is None else name, merged(own.limits, config.adapter_limits))
            for name, own in settings.items()
        ),
        caller=caller,
        key=Subject("key", caller.tenant, merged(caller.limits, config.key_limits)),
        weight=min(own.weight for own in settings.values()),
        priority=min(own.priority for own in settings.values()) - BEHIND_ALL * caller.behind,
    )


def _settings(context: ServerContext, name: str | None) -> NameSettings:
    """What an operator set for the name of an adapter. The base has no settings."""
    return NameSettings() if name is None else context.registry.settings(name)


@contextmanager
def settled(ticket: RequestTicket, generation: Generation) -> Iterator[None]:
    """Count what of a request was really used, however it ends."""
    usage = generation.usage
    generation.on_first = ticket.begun
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):  # whoever leaves may have had the prompt computed
        ticket.used = usage.prompt_tokens
        raise
    finally:
        if usage.completion:
            ticket.used = usage.prompt_tokens + sum(usage.completion.values())


def deadline_of(request: Request, config: ServerConfig, body: SamplingBody | PooledBody) -> float | None:
    """When the request has to have ended, by the event loop's clock: after the shortest of all times that are set.

    Raises InvalidRequestError.
    """
    times = [seconds for seconds in (config.request_timeout, body.timeout, _header(request)) if seconds]
    return asyncio.get_running_loop().time() + min(times) if times else None


def _header(request: Request) -> float | None:
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT:
        raise InvalidRequestError(f"{TIMEOUT_HEADER} must be a number of seconds above 0", param=TIMEOUT_HEADER)
    return seconds
