"""The trainer's client of a hotswap server: questions to a model, and the admin API of versions.

It tries again where the server asks for it, and says errors in one plain line. Knows neither rows nor packages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from trainer.errors import ConfigError, EvaluationError, PublishError


def bearer(key: str | None) -> dict[str, str]:
    """The header that carries ``key``; none without one. Raises ConfigError, which does not repeat the key."""
    if not key:
        return {}
    if not key.isascii() or not key.isprintable() or key != key.strip():
        raise ConfigError(
            "the key for the server must consist of printable ASCII characters; see that nothing was "
            "copied with it, such as the end of a line"
        )
    return {"Authorization": f"Bearer {key}"}


@dataclass(frozen=True)
class Endpoint:
    """A model on a server: ``name`` or ``name@version`` of an adapter, or the base's name."""

    server: str
    model: str
    api_key: str | None = None


CONNECT_SECONDS = 10.0
BUSY_SECONDS = 120.0  # how long a server may go on answering 429 or 503
_LONGEST_PAUSE = 30.0
_BROKEN_OFF = 2  # times that a request is sent again when its connection broke


class ContextTooLong(Exception):  # noqa: N818  (an outcome that is counted)
    """A prompt, or it and its answer, do not fit the server's context."""


class InferenceClient:
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

    async def __aenter__(self) -> InferenceClient:
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
            raise ContextTooLong(str(error.get("message")))
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


ADMIN_BUSY_SECONDS = 60.0  # for a server that says it is busy for the moment: while its engine starts again, say
_ADMIN_LONGEST_PAUSE = 5.0


class RefusedError(PublishError):
    """The server answered with an error. ``code`` is the server's word for it, ``status`` HTTP's."""

    def __init__(self, message: str, status: int, code: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class ServedVersion:
    """One version on a server. ``state`` is ``live``, ``candidate``, ``draining`` or ``stored``.

    ``replaced`` is set by an activation: the version that was live before.
    """

    name: str
    version: int
    digest: str
    state: str
    warnings: tuple[str, ...] = ()
    replaced: int | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class AdminClient:
    """The admin API of the server at ``server``. ``timeout`` in seconds is for one call. All calls raise PublishError,
    ``RefusedError`` where the server says why."""

    def __init__(self, server: str, key: str | None = None, *, timeout: float = 600.0) -> None:
        self.server = server.rstrip("/").removesuffix("/v1")
        self.key = key
        self._client = httpx.Client(headers=bearer(key), timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS))

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    def upload(self, archive: Any, fields: Mapping[str, str], *, replace: bool) -> ServedVersion:
        """Upload the file ``archive`` with form ``fields``, of which ``name`` says what to call it."""
        method, path = ("PUT", _path(fields["name"])) if replace else ("POST", "/v1/adapters")
        upload = {"file": ("package.tar", archive, "application/x-tar")}
        response = self._send(method, path, data=fields, files=upload)
        return self._version(self._body(response, "the adapter"))

    def versions(self, name: str) -> list[ServedVersion]:
        """All versions of ``name``, oldest first; none where there is no such name."""
        response = self._asked("GET", _path(name))
        if response.status_code == 404:
            return []
        body = self._body(response, "to tell of the adapter")
        return [self._version(version) for version in _listed(body, "versions")]

    def live(self, name: str) -> ServedVersion | None:
        """The version that ``name`` serves."""
        return next((version for version in self.versions(name) if version.state == "live"), None)

    def activate(self, name: str, version: int, *, expected_live: int | None = None) -> ServedVersion:
        """Let ``name`` serve ``version``, with ``expected_live`` only if it serves that now (0: nothing)."""
        fields = {"version": version, "expected_live": expected_live}
        response = self._asked("PATCH", _path(name), json=_given(fields))
        return self._version(self._body(response, "to activate the version"))

    def rollback(self, name: str, version: int | None = None, *, expected_live: int | None = None) -> ServedVersion:
        """Let ``name`` serve what it served before, or ``version``."""
        fields = {"version": version, "expected_live": expected_live}
        response = self._asked("POST", f"{_path(name)}/rollback", json=_given(fields))
        return self._version(self._body(response, "to roll back"))

    def delete_version(self, name: str, version: int, *, force: bool = False) -> None:
        """Delete a version that is not live; it is fine if it is gone already."""
        params = {"mode": "force" if force else "drain"}
        response = self._asked("DELETE", f"{_path(name)}/versions/{version}", params=params)
        if response.status_code != 404:
            self._body(response, "to delete the version")

    def delete(self, name: str) -> None:
        """Delete all of ``name``; it is fine if it is gone already."""
        response = self._asked("DELETE", _path(name))
        if response.status_code != 404:
            self._body(response, "to delete the adapter")

    def base_name(self) -> str:
        """What requests call the base."""
        response = self._asked("GET", "/v1/models")
        models = _listed(self._body(response, "to list its models"), "data")
        for model in models:
            if model.get("parent") is None and isinstance(model.get("id"), str):
                return str(model["id"])
        raise self._not_ours()

    # ---- inside ----

    def _asked(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The answer to a small call that may be repeated; a server that is busy is asked again for a while."""
        deadline = time.monotonic() + ADMIN_BUSY_SECONDS
        while True:
            response = self._send(method, path, **options)
            if response.status_code != 503 or time.monotonic() > deadline:
                return response
            time.sleep(_admin_pause(response))

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._client.request(method, self.server + path, **options)
        except httpx.ConnectTimeout as error:
            raise PublishError(f"{self.server} cannot be reached: it did not answer in time") from error
        except httpx.TimeoutException as error:
            raise PublishError(f"{self.server} did not answer in time; is it up and ready?") from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
            raise PublishError(
                f"{self.server!r} is not a server address; give one like http://localhost:8000"
            ) from error
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise PublishError(f"{self.server} cannot be reached or broke off: {reason}") from error

    def _body(self, response: httpx.Response, what: str) -> dict[str, Any]:
        """The answer's fields. Raises RefusedError with the server's own words, ``what`` being what was asked."""
        try:
            body = response.json()
        except ValueError:
            body = None
        if response.is_success and isinstance(body, dict):
            return body
        error = body.get("error") if isinstance(body, dict) else None
        if not isinstance(error, dict):
            error = {"message": f"it answered {response.status_code} {response.reason_phrase}"}
        key = "; give a key with --admin-key or HOTSWAP_ADMIN_KEY" if response.status_code in (401, 403) else ""
        message = f"the server refused {what} ({response.status_code}): {error.get('message')}{key}"
        raise RefusedError(message, response.status_code, error.get("code"))

    def _version(self, body: Mapping[str, Any]) -> ServedVersion:
        try:
            return ServedVersion(
                name=str(body["name"]),
                version=int(body["version"]),
                digest=str(body["digest"]),
                state=str(body["state"]),
                warnings=tuple(str(warning) for warning in body.get("warnings") or ()),
                replaced=body.get("replaced"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self._not_ours() from error

    def _not_ours(self) -> PublishError:
        return PublishError(f"{self.server} answered, but not like a hotswap server")


def _path(name: str) -> str:
    return f"/v1/adapters/{quote(name, safe='')}"


def _given(fields: Mapping[str, int | None]) -> dict[str, int]:
    return {name: value for name, value in fields.items() if value is not None}


def _listed(body: Mapping[str, Any], field: str) -> list[Mapping[str, Any]]:
    found = body.get(field)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _admin_pause(response: httpx.Response) -> float:
    """The seconds that the server asks to wait; 1 where it says nothing that can be read."""
    try:
        return min(max(float(response.headers.get("retry-after", "1")), 0.1), _ADMIN_LONGEST_PAUSE)
    except ValueError:
        return 1.0
