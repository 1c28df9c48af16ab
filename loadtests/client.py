"""One streaming request to an OpenAI-compatible server, with a time stamp for every piece of text.

It is light, because client and server often share a machine: one session, lines as they come, one JSON parse a chunk.
It knows nothing of load patterns or statistics.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from loadtests.workloads import Call

Endpoint = Literal["completions", "chat"]


@dataclass(frozen=True)
class Target:
    """The server to drive and what every request asks for; ``fields`` are more of the body, by model."""

    url: str
    endpoint: Endpoint = "completions"
    api_key: str | None = None
    max_tokens: int = 64
    temperature: float = 0.0
    ignore_eos: bool = False
    timeout_s: float = 600.0
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The address up to and including ``/v1``."""
        trimmed = self.url.rstrip("/")
        return trimmed if trimmed.endswith("/v1") else trimmed + "/v1"


@dataclass
class Outcome:
    """What became of one call. Times are ``time.perf_counter`` seconds; ``stamps`` has one per piece of text.

    ``error`` is None for a complete answer, else its type: ``http_<status>``, ``connection``, ``timeout``,
    ``stream_error`` (an error event inside the stream), ``cut_off`` (the stream ended early), ``bad_response``.
    """

    model: str
    start: float
    end: float = 0.0
    stamps: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None
    detail: str = ""


class _CallError(Exception):
    """A call that did not get its whole answer: (error type, detail)."""


def open_session(target: Target) -> aiohttp.ClientSession:
    """A session without a limit of its own on connections. Close it, or use it as a context manager.

    Each request has a connection of its own: llama.cpp's server closes one after a stream without having said so.
    """
    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=target.timeout_s),
        headers=headers,
        read_bufsize=2**20,
    )


async def list_models(session: aiohttp.ClientSession, target: Target) -> list[str]:
    """The model names that the server lists, in its order."""
    async with session.get(f"{target.base}/models") as response:
        response.raise_for_status()
        return [str(entry["id"]) for entry in (await response.json())["data"]]


async def ask(session: aiohttp.ClientSession, target: Target, call: Call, *, start: float | None = None) -> Outcome:
    """Make ``call`` and wait for its last byte; never raises for what the server or the network does.

    ``start`` is when the call was due, where that is earlier than now: waiting to be sent is latency too.
    """
    outcome = Outcome(model=call.model, start=time.perf_counter() if start is None else start)
    path = "/chat/completions" if target.endpoint == "chat" else "/completions"
    try:
        async with session.post(target.base + path, json=_body(target, call)) as response:
            if response.status != 200:
                raise _CallError(f"http_{response.status}", (await response.text())[:300])
            await _read_stream(response, outcome)
    except _CallError as error:
        outcome.error, outcome.detail = error.args
    except TimeoutError:
        outcome.error, outcome.detail = "timeout", f"no complete answer in {target.timeout_s:g} s"
    except aiohttp.ClientError as error:
        outcome.error, outcome.detail = "connection", f"{type(error).__name__}: {error}"
    outcome.end = time.perf_counter()
    return outcome


def _body(target: Target, call: Call) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": call.model,
        "max_tokens": target.max_tokens,
        "temperature": target.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
        **target.fields.get(call.model, {}),
    }
    if target.ignore_eos:
        body["ignore_eos"] = True
    if target.endpoint == "chat":
        return body | {"messages": [{"role": "user", "content": call.prompt}]}
    return body | {"prompt": call.prompt}


async def _read_stream(response: aiohttp.ClientResponse, outcome: Outcome) -> None:
    async for data in _events(response):
        if data == b"[DONE]":
            return
        now = time.perf_counter()
        _take(_parse(data), now, outcome)
    raise _CallError("cut_off", "the stream ended without [DONE]")


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async for line in response.content:
        if line.startswith(b"data:"):
            yield line[5:].strip()


def _parse(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError as error:
        raise _CallError("bad_response", f"not JSON: {data[:100]!r}") from error
    if not isinstance(event, dict):
        raise _CallError("bad_response", f"not an object: {data[:100]!r}")
    return event


def _take(event: dict[str, Any], now: float, outcome: Outcome) -> None:
    if "error" in event:
        raise _CallError("stream_error", json.dumps(event["error"])[:300])
    usage = event.get("usage")
    if usage:
        outcome.prompt_tokens = usage.get("prompt_tokens")
        outcome.completion_tokens = usage.get("completion_tokens")
    for choice in event.get("choices") or ():
        if choice.get("text") or (choice.get("delta") or {}).get("content"):
            outcome.stamps.append(now)
