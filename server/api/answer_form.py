"""The forms of answers: how an endpoint writes what was generated, whole or as a stream, and what went wrong."""

from __future__ import annotations

from typing import Any, Protocol

from typing_extensions import override

from server.api.error_responses import ApiError
from server.api.event_stream import DONE, event, event_parts, obfuscated
from server.api.job import Job
from server.api.large_answer import json_parts
from server.api.outputs import Completion, TextDelta, Usage
from server.api.wire import SamplingBody


class EventWriter(Protocol):
    """Writes the events of one stream. What it returns is sent in this order, each an event or a part of one."""

    def first(self) -> list[bytes]:
        """What comes before anything is generated."""
        return []

    def of(self, delta: TextDelta, usage: Usage) -> list[bytes]:
        """What a delta makes. Runs off the event loop where the delta tells of a whole prompt."""

    async def last(self, usage: Usage) -> list[bytes]:
        """What comes when all is generated."""

    def failure(self, error: ApiError) -> bytes:
        """The end of a stream that goes no further."""


class AnswerForm(Protocol):
    """How one request is answered."""

    async def whole(self, job: Job, completions: list[Completion], usage: Usage) -> list[bytes]:
        """The body of an answer that is not streamed, in parts. Takes ``completions``."""

    def writer(self, job: Job, body: SamplingBody) -> EventWriter:
        """What writes the stream that ``body`` asks for."""


# ---- answers of choices ----


class ChoiceFormat(AnswerForm):
    """Answers that are a list of choices, one for each sequence."""

    object: str
    chunk_object: str

    def choice(self, job: Job, completion: Completion) -> dict[str, Any]:
        """One entry of ``choices`` of a whole answer."""
        raise NotImplementedError

    def chunk_choices(self, job: Job, delta: TextDelta) -> list[dict[str, Any]]:
        """The entries of ``choices`` that a delta makes, each a chunk of its own."""
        raise NotImplementedError

    def fields(self, job: Job, completions: list[Completion]) -> dict[str, Any]:
        """What a whole answer has beside ``choices`` and ``usage``."""
        return {}

    def first_fields(self, job: Job) -> dict[str, Any]:
        """What the first chunk of a stream has beside its choice."""
        return {}

    @override
    async def whole(self, job: Job, completions: list[Completion], usage: Usage) -> list[bytes]:
        def make() -> list[bytes]:
            return json_parts(completion_body(self, job, completions, usage))

        return await job.tokenizer.off_loop(entries(job, completions), make)

    @override
    def writer(self, job: Job, body: SamplingBody) -> EventWriter:
        return Chunks(self, job, body)


def head(job: Job, kind: str) -> dict[str, Any]:
    """The fields that every answer and every chunk of a job begins with."""
    tier = {"service_tier": job.tells.service_tier} if job.tells.service_tier else {}
    return {
        "id": job.id,
        "object": kind,
        "created": job.created,
        "model": job.model,
        "system_fingerprint": job.fingerprint,
        **tier,
    }


def completion_body(form: ChoiceFormat, job: Job, completions: list[Completion], usage: Usage) -> dict[str, Any]:
    """The body of an answer that is not streamed. Its choices are made while it is written, and take ``completions``.

    What they hold is let go on the way: all at once, on the event loop, that would take a while.
    """
    fields = form.fields(job, completions)
    completions.reverse()
    choices = (form.choice(job, completions.pop()) for _ in range(len(completions)))
    return {**head(job, form.object), "choices": choices, "usage": usage.body(), **fields}


def entries(job: Job, completions: list[Completion]) -> int:
    """How many tokens and alternatives to them an answer tells of, which is the work of writing it."""
    told = sum(len(completion.tokens) for completion in completions)
    of_prompts = sum(len(completion.prompt_logprobs or ()) for completion in completions)
    echoed = job.prompt_tokens * job.n if job.echo else 0
    alternatives = 1 + (job.sampling.logprobs or 0)
    return told * alternatives + of_prompts * (alternatives + (job.prompt_logprobs or 0)) + echoed


class Chunks(EventWriter):
    """Writes the chunks of one stream, with usage where the client asked for it."""

    def __init__(self, form: ChoiceFormat, job: Job, body: SamplingBody) -> None:
        options = body.stream_options
        self._form = form
        self._job = job
        self._head = head(job, form.chunk_object)
        self._final_usage = job.tells.usage or bool(options and options.include_usage)
        continuous = job.tells.usage or bool(options and options.continuous_usage_stats)
        self._running_usage = self._final_usage and continuous
        self._pad = obfuscated if options and options.include_obfuscation else dict[str, Any]
        self._first = form.first_fields(job)

    @override
    def of(self, delta: TextDelta, usage: Usage) -> list[bytes]:
        chunks = [self._chunk(choice, usage) for choice in self._form.chunk_choices(self._job, delta)]
        if delta.prompt_logprobs:
            return [part for chunk in chunks for part in event_parts(chunk)]
        return [event(chunk) for chunk in chunks]

    @override
    async def last(self, usage: Usage) -> list[bytes]:
        """The chunk with the usage of all choices, if asked for."""
        chunk = self._pad({**self._head, "choices": [], "usage": usage.body()})
        return [event(chunk), DONE] if self._final_usage else [DONE]

    @override
    def failure(self, error: ApiError) -> bytes:
        return event(error.body()) + DONE

    def _chunk(self, choice: dict[str, Any], usage: Usage) -> dict[str, Any]:
        first, self._first = self._first, {}
        return self._pad({**self._head, **first, **self._usage(choice, usage), "choices": [choice]})

    def _usage(self, choice: dict[str, Any], usage: Usage) -> dict[str, Any]:
        """What a chunk says of usage. One that tells the role comes before all tokens, and counts none."""
        if self._running_usage:
            return {"usage": usage.body(choice["index"], begun="role" not in choice.get("delta", ()))}
        return {"usage": None} if self._final_usage else {}
