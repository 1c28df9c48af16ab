"""Who may do what: API keys in two scopes. Every route states its scope as a dependency; there is no default.

An admin key also infers. Keys are compared as SHA-256 digests, each against all configured ones, in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Annotated

from fastapi import Depends, Request

from server.api.context import ConfigDep
from server.api.error_responses import ApiError
from server.api.origins import check_local
from server.settings import ServerConfig


async def require_inference(request: Request, config: ConfigDep) -> None:
    """Let inference and admin keys through; where no inference key is configured, all but foreign web pages."""
    if not config.api_keys:
        _refuse_pages(request, config)
        return
    digest = _digest(request)
    if not (_matches(digest, config.api_keys) | _matches(digest, config.admin_keys)):
        raise _unauthorized()


async def require_admin(request: Request, config: ConfigDep) -> None:
    """Let admin keys through; without any keys at all, only local programs (not web pages) on a loopback address."""
    if config.admin_is_open:
        refusal = "without --admin-key the admin API answers only local programs"
        check_local(request.headers, allowed=(), any_host=False, refusal=refusal)
        return
    if not config.admin_keys:
        raise ApiError(
            403,
            "the admin API is off: start the server with --admin-key",
            type="permission_error",
            code="admin_disabled",
        )
    digest = _digest(request)
    if _matches(digest, config.admin_keys):
        return
    if _matches(digest, config.api_keys):
        raise ApiError(
            403, "this key may not use the admin API", type="permission_error", code="insufficient_permissions"
        )
    raise _unauthorized()


async def require_metrics(request: Request, config: ConfigDep) -> None:
    """Like inference, open with --public-metrics; also closed where only admin keys are configured."""
    if config.public_metrics:
        return
    if not (config.api_keys or config.admin_keys):
        _refuse_pages(request, config)
        return
    digest = _digest(request)
    if not (_matches(digest, config.api_keys) | _matches(digest, config.admin_keys)):
        raise _unauthorized()


async def open_to_all() -> None:
    """State that a route needs no key: probes."""


def tenant(request: Request, config: ServerConfig) -> str:
    """Tells clients with different keys apart: they share no cached prompts, whose timing would tell of each other."""
    several = len(config.api_keys) + len(config.admin_keys) > 1
    return _digest(request).hex()[:32] if config.api_keys and several else ""


def _refuse_pages(request: Request, config: ServerConfig) -> None:
    """No key is asked for, so a page on the web could use this server through the browser of whoever reaches it."""
    refusal = (
        "without --api-key this server answers only programs and pages of its own machine; "
        "its operator can allow a page's origin with --cors-origin"
    )
    check_local(request.headers, allowed=config.cors_origin, any_host=not config.is_loopback, refusal=refusal)


def _digest(request: Request) -> bytes:
    header = request.headers.get("authorization", "")
    scheme, _, key = header.partition(" ")
    if scheme.lower() != "bearer":
        key = ""
    return hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()


def _matches(digest: bytes, keys: Iterable[bytes]) -> bool:
    found = False
    for key in keys:  # all of them, always: the time taken says nothing
        found |= hmac.compare_digest(digest, key)
    return found


def _unauthorized() -> ApiError:
    return ApiError(
        401,
        "the API key is missing or wrong; send it as `Authorization: Bearer <key>`",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


InferenceKey = Annotated[None, Depends(require_inference)]
AdminKey = Annotated[None, Depends(require_admin)]
MetricsKey = Annotated[None, Depends(require_metrics)]
Open = Annotated[None, Depends(open_to_all)]
