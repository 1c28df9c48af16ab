"""What both kinds of completion answer with: the common fields, whole or in chunks."""

from __future__ import annotations

from typing import Any, Protocol

from server.api.generation import Usage, Whole
from server.api.job import Job
from server.api.requests import SamplingBody
from server.api.sequence import Delta


class Reply(Protocol):
    """The form of one kind's choices."""

    object: str
    chunk_object: str

    def choice(self, job: Job, whole: Whole) -> dict[str, Any]:
        """One entry of ``choices`` of a whole answer."""

    def chunk_choices(self, job: Job, delta: Delta) -> list[dict[str, Any]]:
        """The entries of ``choices`` that a delta makes, each a chunk of its own."""


def head(job: Job, kind: str) -> dict[str, Any]:
    """The fields that every answer and every chunk of a job begins with."""
    return {
        "id": job.id,
        "object": kind,
        "created": job.created,
        "model": job.model,
        "system_fingerprint": job.fingerprint,
    }


def whole_body(reply: Reply, job: Job, wholes: list[Whole], usage: Usage) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    choices = [reply.choice(job, whole) for whole in wholes]
    return {**head(job, reply.object), "choices": choices, "usage": usage.body()}


class Chunks:
    """Makes the chunks of one stream, with usage where the client asked for it."""

    def __init__(self, reply: Reply, job: Job, body: SamplingBody) -> None:
        options = body.stream_options
        self._reply = reply
        self._job = job
        self._head = head(job, reply.chunk_object)
        self._final_usage = bool(options and options.include_usage)
        self._running_usage = bool(options and options.continuous_usage_stats)

    def of(self, delta: Delta, usage: Usage) -> list[dict[str, Any]]:
        """The chunks of one delta."""
        common = dict(self._head)
        if self._running_usage:
            common["usage"] = usage.body(delta.index)
        elif self._final_usage:
            common["usage"] = None
        return [{**common, "choices": [choice]} for choice in self._reply.chunk_choices(self._job, delta)]

    def last(self, usage: Usage) -> list[dict[str, Any]]:
        """The chunk with the usage of all choices, if asked for."""
        return [{**self._head, "choices": [], "usage": usage.body()}] if self._final_usage else []
