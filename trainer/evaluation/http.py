"""JSON over HTTP with a serving engine: tries again where the server asks for it, and says errors in one plain line."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from trainer.errors import EvaluationError
from trainer.evaluation.types import Endpoint
from trainer.keys import bearer

CONNECT_SECONDS = 10.0
BUSY_SECONDS = 120.0  # how long a server may go on answering 429 or 503
_LONGEST_PAUSE = 30.0
_BROKEN_OFF = 2  # times that a request is sent again when its connection broke


class TooLong(Exception):  # noqa: N818  (an outcome that is counted)
    """A prompt, or it and its answer, do not fit the server's context."""


class Connection:
    """Requests to one endpoint. ``timeout`` is for each, in seconds. Use it as an async context manager."""

    def __init__(self, endpoint: Endpoint, timeout: float, connections: int) -> None:
        self._server = endpoint.server
        self._timeout = timeout
        try:
            self._client = httpx.AsyncClient(
                base_url=endpoint.server.rstrip("/").removesuffix("/v1"),
                headers=bearer(endpoint.api_key),
                timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS, pool=None),
                limits=httpx.Limits(max_connections=connections),
            )
        except (httpx.InvalidURL, UnicodeError) as error:
            raise self._no_address() from error

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def get(self, path: str) -> dict[str, Any]:
        """The answer to a GET. Raises EvaluationError."""
        return await self._asked("GET", path, None)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a JSON request. Raises EvaluationError, and TooLong."""
        return await self._asked("POST", path, body)

    async def _asked(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        deadline, broken = time.monotonic() + BUSY_SECONDS, 0
        while True:
            try:
                response = await self._client.request(method, path, json=body)
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
                broken += 1
                if broken > _BROKEN_OFF:
                    raise EvaluationError(f"{self._server} broke off while it answered; see its log") from error
                continue
            except httpx.TimeoutException as error:
                raise EvaluationError(
                    f"{self._server} did not answer within {self._timeout:g} s; give it longer with --timeout, or ask "
                    "fewer at a time with --concurrency"
                ) from error
            except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
                raise self._no_address() from error
            except httpx.TransportError as error:
                raise EvaluationError(
                    f"{self._server} cannot be reached: {str(error) or type(error).__name__}"
                ) from error
            if response.status_code in (429, 503) and time.monotonic() < deadline:
                await asyncio.sleep(_pause(response))
                continue
            return self._read(response)

    def _no_address(self) -> EvaluationError:
        return EvaluationError(f"{self._server!r} is not a server address; give one like http://localhost:8000")

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        try:
            body = response.json()
        except ValueError:
            body = None
        error = body.get("error") if isinstance(body, dict) else None
        if response.is_success and isinstance(body, dict) and error is None:
            return body
        if not isinstance(error, dict):
            raise not_like_hotswap(self._server, f"{response.status_code} {response.reason_phrase}")
        if error.get("code") == "context_length_exceeded":
            raise TooLong(str(error.get("message")))
        key = "; give a key with --api-key or HOTSWAP_API_KEY" if response.status_code in (401, 403) else ""
        raise EvaluationError(f"the server refused ({response.status_code}): {error.get('message')}{key}")


def not_like_hotswap(server: str, what: str) -> EvaluationError:
    """What to raise for an answer of another form than the server's."""
    return EvaluationError(f"{server} answered, but not like a hotswap server: {what}")


def _pause(response: httpx.Response) -> float:
    """The seconds that the server asks to wait; 1 where it says nothing that can be read."""
    try:
        return min(max(float(response.headers.get("retry-after", "1")), 0.1), _LONGEST_PAUSE)
    except ValueError:
        return 1.0
