"""The trainer's one HTTP client of a hotswap server: questions to a model, and the admin API of versions.

It tries again where the server asks for it, and says errors in one plain line. Knows neither rows nor packages.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar
from urllib.parse import quote

import httpx
from typing_extensions import override

from trainer.errors import ConfigError, EvaluationError, PublishError, TrainerError
from trainer.serving.answers import listed

CONNECT_SECONDS = 10.0
_BROKEN = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
_UNSENT = (httpx.TransportError, httpx.InvalidURL, UnicodeError)  # what a request raises that has no answer


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


class _Client(ABC):
    """What both clients share: the server's address, its errors in our words, and when a request is sent again."""

    error: ClassVar[type[TrainerError]]  # what trouble is raised as
    key_option: ClassVar[str]  # where a person gives the key
    when_late: ClassVar[str]  # what a person can do about an answer that takes too long
    busy_statuses: ClassVar[tuple[int, ...]] = (503,)
    busy_seconds: ClassVar[float] = 60.0  # how long a server may go on answering one of ``busy_statuses``
    longest_pause: ClassVar[float] = 5.0
    resends: ClassVar[int] = 0  # times that a request is sent again when its connection broke

    def __init__(self, server: str, timeout: float) -> None:
        self.server = server.rstrip("/").removesuffix("/v1")
        self.timeout = timeout

    def not_ours(self, what: str = "") -> TrainerError:
        """What to raise for an answer of another form than the server's."""
        return self.error(f"{self.server} answered, but not like a hotswap server{what and f': {what}'}")

    def _unanswered(self, error: Exception) -> TrainerError:
        """What to raise for a request without an answer."""
        reason = str(error) or type(error).__name__
        match error:
            case httpx.InvalidURL() | httpx.UnsupportedProtocol() | UnicodeError():
                return self.error(f"{self.server!r} is not a server address; give one like http://localhost:8000")
            case httpx.ConnectTimeout():
                return self.error(f"{self.server} cannot be reached: it did not answer in time")
            case httpx.TimeoutException():
                return self.error(f"{self.server} did not answer within {self.timeout:g} s; {self.when_late}")
            case _ if isinstance(error, _BROKEN):
                return self.error(f"{self.server} broke off while it answered ({reason}); see its log")
            case _:
                return self.error(f"{self.server} cannot be reached: {reason}")

    def _body(self, response: httpx.Response, what: str = "") -> dict[str, Any]:
        """The answer's fields. Raises what ``_refusal`` makes of an error, ``what`` being what was asked."""
        try:
            body = response.json()
        except ValueError:
            body = None
        error = body.get("error") if isinstance(body, dict) else None
        if response.is_success and isinstance(body, dict) and error is None:
            return body
        raise self._refusal(response, error if isinstance(error, dict) else None, what)

    @abstractmethod
    def _refusal(self, response: httpx.Response, error: Mapping[str, Any] | None, what: str) -> Exception:
        """What to raise for an answer that is an error; ``error`` is the server's own account of it, if it is ours."""

    def _refused(self, response: httpx.Response, words: object, what: str) -> str:
        key = f"; give a key with {self.key_option}" if response.status_code in (401, 403) else ""
        return f"the server refused{what and f' {what}'} ({response.status_code}): {words}{key}"

    def _base_of(self, body: Mapping[str, Any]) -> str:
        """What requests call the base, by the list of models."""
        for model in listed(body, "data"):
            if model.get("parent") is None and isinstance(model.get("id"), str):
                return str(model["id"])
        raise self.not_ours("no base among its models")


class _Tries:
    """One request of ``client``, as often as it is sent."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._deadline = time.monotonic() + client.busy_seconds
        self._resends = client.resends

    def pause(self, response: httpx.Response) -> float | None:
        """The seconds to wait before the request is sent again; None where ``response`` is the answer."""
        if response.status_code not in self._client.busy_statuses or time.monotonic() > self._deadline:
            return None
        try:
            return min(max(float(response.headers.get("retry-after", "1")), 0.1), self._client.longest_pause)
        except ValueError:
            return 1.0

    def resend(self, error: Exception) -> bool:
        """Whether the request, which got ``error`` instead of an answer, is sent again."""
        if not isinstance(error, _BROKEN) or not self._resends:
            return False
        self._resends -= 1
        return True


@dataclass(frozen=True)
class Endpoint:
    """A model on a server: ``name`` or ``name@version`` of an adapter, or the base's name."""

    server: str
    model: str
    api_key: str | None = None


class ContextTooLong(Exception):  # noqa: N818  (an outcome that is counted)
    """A prompt, or it and its answer, do not fit the server's context."""


class InferenceClient(_Client):
    """Questions to a server, ``connections`` at a time. ``timeout`` is for each, in seconds. Use it as an async context
    manager. All calls raise EvaluationError."""

    error = EvaluationError
    key_option = "--api-key or HOTSWAP_API_KEY"
    when_late = "give it longer with --timeout, or ask fewer at a time with --concurrency"
    busy_statuses = (429, 503)
    busy_seconds = 120.0
    longest_pause = 30.0
    resends = 2

    def __init__(self, server: str, key: str | None = None, *, timeout: float = 60.0, connections: int = 1) -> None:
        super().__init__(server, timeout)
        self._client = httpx.AsyncClient(
            headers=bearer(key),
            timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=connections),
        )

    async def __aenter__(self) -> InferenceClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a JSON request. Raises ContextTooLong, too."""
        return await self._asked("POST", path, body)

    async def base_name(self) -> str:
        """What requests call the base."""
        return self._base_of(await self._asked("GET", "/v1/models"))

    async def is_ready(self) -> bool:
        """Whether the server takes requests by now."""
        try:
            return (await self._client.get(f"{self.server}/ready")).status_code == 200
        except httpx.TransportError:
            return False  # it does not listen yet

    async def _asked(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        tries = _Tries(self)
        while True:
            try:
                response = await self._client.request(method, self.server + path, json=body)
            except _UNSENT as error:
                if not tries.resend(error):
                    raise self._unanswered(error) from error
                continue
            pause = tries.pause(response)
            if pause is None:
                return self._body(response)
            await asyncio.sleep(pause)

    @override
    def _refusal(self, response: httpx.Response, error: Mapping[str, Any] | None, what: str) -> Exception:
        if error is None:
            return self.not_ours(f"{response.status_code} {response.reason_phrase}")
        if error.get("code") == "context_length_exceeded":
            return ContextTooLong(str(error.get("message")))
        return EvaluationError(self._refused(response, error.get("message"), what))


class RefusedError(PublishError):
    """The server answered with an error. ``code`` is the server's word for it, ``answer`` the whole of its JSON."""

    def __init__(self, message: str, code: str | None, answer: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.answer = answer or {}


@dataclass(frozen=True)
class ServedVersion:
    """One version on a server. ``state`` is ``live``, ``candidate``, ``draining``, ``stored`` or ``failed``.

    ``replaced`` is set by an activation: the version that was live before. ``answer`` is all that the server said.
    """

    name: str
    version: int
    digest: str
    state: str
    warnings: tuple[str, ...] = ()
    replaced: int | None = None
    answer: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class AdminClient(_Client):
    """The admin API of the server at ``server``. ``timeout`` in seconds is for one call. All calls raise PublishError,
    ``RefusedError`` where the server says why.

    Changes take what must hold for them to be made: ``expected_live``, the version that the name serves now (0: none),
    and ``if_match``, the entity tag of what was looked at (``*``: the name must exist). The server refuses them where
    it does not.
    """

    error = PublishError
    key_option = "--admin-key or HOTSWAP_ADMIN_KEY"
    when_late = "is it up and ready?"

    def __init__(self, server: str, key: str | None = None, *, timeout: float = 600.0) -> None:
        super().__init__(server, timeout)
        self.key = key
        self._client = httpx.Client(headers=bearer(key), timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS))

    def __enter__(self) -> AdminClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.close()

    # ---- looking ----

    def adapters(self) -> dict[str, Any]:
        """All that the server knows of each name, in ``data``."""
        return self.call("GET", "/v1/adapters", "to list its adapters")

    def adapter(self, name: str) -> dict[str, Any]:
        """All that the server knows of ``name``."""
        return self.call("GET", _path(name), "to tell of the adapter")

    def versions(self, name: str) -> list[ServedVersion]:
        """All versions of ``name``, oldest first; none where there is no such name."""
        body = self.call("GET", _path(name), "to tell of the adapter", gone={})
        return [self._version(version) for version in listed(body, "versions")]

    def live(self, name: str) -> ServedVersion | None:
        """The version that ``name`` serves."""
        return next((version for version in self.versions(name) if version.state == "live"), None)

    def events(self, **filters: Any) -> dict[str, Any]:
        """Who changed what and when, newest first, in ``data``; of one adapter with ``name``, at most ``limit``."""
        return self.call("GET", "/v1/events", "to tell what happened", params=filters)

    def base_name(self) -> str:
        """What requests call the base."""
        return self._base_of(self.call("GET", "/v1/models", "to list its models"))

    # ---- changing ----

    def upload(
        self, archive: Any, fields: Mapping[str, str], *, replace: bool, if_match: str | None = None
    ) -> ServedVersion:
        """Upload the file ``archive`` with form ``fields``, of which ``name`` says what to call it."""
        method, path = ("PUT", _path(fields["name"])) if replace else ("POST", "/v1/adapters")
        upload = {"file": ("package.tar", archive, "application/x-tar")}
        response = self._send(method, path, data=fields, files=upload, headers=_matching(if_match))
        return self._version(self._body(response, "the adapter"))

    def fetch(
        self, fields: Mapping[str, Any], *, expected_live: int | None = None, if_match: str | None = None
    ) -> ServedVersion:
        """Let the server itself get the package from the ``source`` among ``fields``; ``name`` says what to call it."""
        params = {"name": fields["name"], **_given({"expected_live": expected_live})}  # looked at before it is fetched
        headers = _matching(if_match)
        response = self._send("POST", "/v1/adapters", json=dict(fields), params=params, headers=headers)
        return self._version(self._body(response, "the adapter"))

    def activate(
        self, name: str, version: int, *, expected_live: int | None = None, if_match: str | None = None
    ) -> ServedVersion:
        """Let ``name`` serve ``version``."""
        fields = _given({"version": version, "expected_live": expected_live})
        return self._version(self.change(name, fields, "to activate the version", if_match=if_match))

    def rollback(
        self, name: str, version: int | None = None, *, expected_live: int | None = None, if_match: str | None = None
    ) -> ServedVersion:
        """Let ``name`` serve what it served before, or ``version``."""
        fields = _given({"version": version, "expected_live": expected_live})
        return self._version(self.act(name, "rollback", fields, "to roll back", if_match=if_match))

    def canary(
        self,
        name: str,
        version: int,
        weight: float | None,
        *,
        shadow: float | None = None,
        rules: Mapping[str, Any] | None = None,
        expected_live: int | None = None,
        if_match: str | None = None,
    ) -> dict[str, Any]:
        """Let ``version`` answer a share of the requests to ``name``, ``weight`` (0 to 1), until ``rules`` end that; or
        get copies of a share, ``shadow``; or both."""
        fields: dict[str, Any] = _given({"expected_live": expected_live})
        if weight is not None:
            fields["canary"] = {"version": version, "weight": weight, **({"rules": dict(rules)} if rules else {})}
        if shadow is not None:
            fields["shadow"] = {"version": version, "weight": shadow}
        return self.change(name, fields, "to share out the requests", if_match=if_match)

    def change(
        self, name: str, fields: Mapping[str, Any], what: str = "the change", *, if_match: str | None = None
    ) -> dict[str, Any]:
        """Set ``fields`` of ``name``: the live ``version``, settings, shares of traffic."""
        return self.call("PATCH", _path(name), what, json=dict(fields), headers=_matching(if_match))

    def act(
        self, name: str, verb: str, fields: Mapping[str, Any], what: str, *, if_match: str | None = None
    ) -> dict[str, Any]:
        """Do with ``name`` what ``verb`` says: ``rollback``, ``promote`` or ``abort``."""
        return self.call("POST", f"{_path(name)}/{verb}", what, json=dict(fields), headers=_matching(if_match))

    def delete_version(self, name: str, version: int, *, force: bool = False) -> None:
        """Delete a version that is not live; it is fine if it is gone already."""
        self.remove(name, version, force=force, gone={})

    def delete(self, name: str) -> None:
        """Delete all of ``name``; it is fine if it is gone already."""
        self.remove(name, gone={})

    def remove(
        self,
        name: str,
        version: int | None = None,
        *,
        force: bool = False,
        if_match: str | None = None,
        gone: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Delete all of ``name``, or a version that is not live. With ``gone`` it is no error, but that, if it is not
        there."""
        path = _path(name) if version is None else f"{_path(name)}/versions/{version}"
        what = f"to delete the {'adapter' if version is None else 'version'}"
        params = {"mode": "force" if force else "drain"}
        return self.call("DELETE", path, what, gone=gone, params=params, headers=_matching(if_match))

    # ---- anything else ----

    def call(
        self, method: str, path: str, what: str, *, gone: dict[str, Any] | None = None, **options: Any
    ) -> dict[str, Any]:
        """The fields of the answer to a small call that may be repeated; a server that is busy is asked again for a
        while. ``what`` is asked, in words. ``gone`` is the answer where the server knows no such thing (404)."""
        tries = _Tries(self)
        while True:
            response = self._send(method, path, **options)
            pause = tries.pause(response)
            if pause is None:
                break
            time.sleep(pause)
        return gone if gone is not None and response.status_code == 404 else self._body(response, what)

    # ---- inside ----

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._client.request(method, self.server + path, **options)
        except _UNSENT as error:
            raise self._unanswered(error) from error

    @override
    def _refusal(self, response: httpx.Response, error: Mapping[str, Any] | None, what: str) -> Exception:
        found = error or {"message": f"it answered {response.status_code} {response.reason_phrase}"}
        answer = {"error": dict(error)} if error else None
        return RefusedError(self._refused(response, found.get("message"), what), found.get("code"), answer)

    def _version(self, body: Mapping[str, Any]) -> ServedVersion:
        try:
            return ServedVersion(
                name=str(body["name"]),
                version=int(body["version"]),
                digest=str(body["digest"]),
                state=str(body["state"]),
                warnings=tuple(str(warning) for warning in body.get("warnings") or ()),
                replaced=body.get("replaced"),
                answer=body,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise self.not_ours() from error


def _path(name: str) -> str:
    return f"/v1/adapters/{quote(name, safe='')}"


def _matching(etag: str | None) -> dict[str, str]:
    """The header that guards a change by the entity tag of what was looked at, quoted or not."""
    if etag is None:
        return {}
    return {"If-Match": etag if etag == "*" or etag.startswith(('"', "W/")) else f'"{etag}"'}


def _given(fields: Mapping[str, int | None]) -> dict[str, int]:
    return {name: value for name, value in fields.items() if value is not None}
