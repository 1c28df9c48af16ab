"""Who may do what. Every route states, as a dependency, which keys it is for; there is no default.

Keys are those of flags and files, and those of the catalog, which also say which adapters exist for their holder.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from server.api.audit import note_caller, refused_caller
from server.api.context import ContextDep, ServerContext
from server.api.error_responses import ApiError
from server.api.origins import check_local
from server.api.wire import ModelBody
from server.catalog.events import ANONYMOUS, FLAG, LOCAL
from server.catalog.keys import KeyRecord, KeyState, Scope, allows
from server.catalog.registry import Registry, unknown_model
from server.errors import EngineUnavailableError, ServerError
from server.limits import Limits

_NEEDED = {
    Scope.INFERENCE: "infer",
    Scope.ADMIN: "use the admin API",
    Scope.FINE_TUNING: "train models; a key with the scope fine-tuning, or an admin key, may",
    Scope.READ_ONLY: "read what is served and done",
}


@dataclass(frozen=True)
class Caller:
    """Who sends a request: ``name`` is a key's id in the catalog, or one of the words of ``server.catalog.events``.

    ``tenant`` tells callers with different keys apart: they share no cached prompts, whose timing would tell of each
    other. ``key`` is that of the catalog; whoever has another, or needs none, may use all adapters. ``owner`` is whose
    the files and jobs are that it makes: a key's, one for each, or nobody's in particular.
    """

    name: str
    scopes: tuple[Scope, ...] = ()
    tenant: str = ""
    key: KeyRecord | None = None
    owner: str = ""
    behind: bool = False  # its requests come after all others

    @property
    def adapters(self) -> tuple[str, ...] | None:
        """Names and patterns of the adapters that exist for it; None: all."""
        return self.key.adapters if self.key is not None else None

    @property
    def sees_base(self) -> bool:
        """Whether the base may answer it."""
        return self.key is None or self.key.base

    @property
    def limits(self) -> Limits:
        """What its key may take of the server."""
        return self.key.limits if self.key is not None else Limits()

    @property
    def sees_owner(self) -> str | None:
        """Whose files and jobs it sees: its own; None, all, with an admin key for all adapters."""
        return None if Scope.ADMIN in self.scopes and self.adapters is None else self.owner

    def grants(self, *scopes: Scope) -> bool:
        """Whether it may do what one of ``scopes`` stands for."""
        return Scope.ADMIN in self.scopes or any(scope in self.scopes for scope in scopes)

    @property
    def reads_metrics(self) -> bool:
        """Whether it may know how much everybody asks for."""
        return self.key is None or (self.grants(Scope.READ_ONLY) and self.adapters is None)

    def sees(self, name: str) -> bool:
        """Whether an adapter of that name exists for it."""
        return allows(self.adapters, name)

    def check_adapter(self, name: str) -> None:
        """Raise UnknownModelError for an adapter that does not exist for it, as of one that does not exist."""
        if not self.sees(name):
            raise unknown_model(name)

    def check_model(self, registry: Registry, model: str) -> None:
        """As ``check_adapter``, for what a request names as its model."""
        for name in registry.names_of(model):
            if not (self.sees_base if name is None else self.sees(name)):
                raise unknown_model(model if name is None else name)

    def check_asked(self, registry: Registry, body: ModelBody) -> None:
        """As ``check_adapter``, for all that a request names as its model."""
        for model in filter(None, (body.adapter, body.named(registry.base_name))):
            self.check_model(registry, model)

    def salted(self, salt: str) -> str:
        """A client's own ``salt`` of its cached prompts as the engine is told: no two tenants can say the same."""
        return f"{self.tenant}/{salt}" if self.tenant or salt else ""

    def check_new(self, name: str) -> None:
        """Raise ApiError unless it may upload an adapter of that name, be there one or not."""
        if not self.sees(name):
            raise forbidden("this key may not upload an adapter of that name; it is for " + _listed(self.adapters))


def caller_of(request: Request) -> Caller:
    """Who sends a request that its route has let in."""
    caller = request.scope["state"]["caller"]
    assert isinstance(caller, Caller)
    return caller


# ---- what routes state ----


async def require_inference(request: Request, context: ContextDep) -> Caller:
    """Let keys for inference through; where there is none for it, all but foreign web pages."""
    return _inferring(request, context, Scope.INFERENCE)


async def require_models(request: Request, context: ContextDep) -> Caller:
    """As for inference, also keys that only read."""
    return _inferring(request, context, Scope.INFERENCE, Scope.READ_ONLY)


async def require_files(request: Request, context: ContextDep) -> Caller:
    """As for inference, also keys that train."""
    return _inferring(request, context, Scope.INFERENCE, Scope.FINE_TUNING)


async def require_training(request: Request, context: ContextDep) -> Caller:
    """Let keys that train, and admin keys, through; without any keys at all, only local programs, as for admin keys."""
    return _administering(request, context, Scope.FINE_TUNING)


async def require_maker(request: Request, context: ContextDep) -> Caller:
    """As admin, also keys that train: the route looks at what they made."""
    return _of_the_path(request, context, _administering(request, context, Scope.ADMIN, Scope.FINE_TUNING))


async def require_admin(request: Request, context: ContextDep) -> Caller:
    """Let admin keys through; without any keys at all, only local programs (not web pages) on a loopback address.

    A key for some adapters only gets where the path names one of them.
    """
    return _of_the_path(request, context, _administering(request, context, Scope.ADMIN))


async def require_some_admin(request: Request, context: ContextDep) -> Caller:
    """As admin, also keys for some adapters: the route looks at each by itself."""
    return _administering(request, context, Scope.ADMIN)


async def require_reader(request: Request, context: ContextDep) -> Caller:
    """As admin, also keys that only read."""
    return _of_the_path(request, context, _administering(request, context, Scope.ADMIN, Scope.READ_ONLY))


async def require_some_reader(request: Request, context: ContextDep) -> Caller:
    """As ``require_some_admin``, also keys that only read."""
    return _administering(request, context, Scope.ADMIN, Scope.READ_ONLY)


async def require_metrics(request: Request, context: ContextDep) -> Caller:
    """Any key of a flag, and keys that read or administer all adapters; open with --public-metrics or without keys."""
    if context.config.public_metrics:
        return _known(request, context, Caller(ANONYMOUS))
    if not context.access.has_keys:
        _refuse_pages(request, context)
        return _known(request, context, Caller(LOCAL))
    caller = _identified(request, context)
    if caller is None:
        raise refused_caller(request, context, ANONYMOUS, _unauthorized())
    if not caller.reads_metrics:
        refusal = forbidden("this key may not read metrics; a key that reads or administers all adapters may")
        raise refused_caller(request, context, caller.name, refusal)
    return caller


async def open_to_all() -> None:
    """State that a route needs no key: probes."""


InferenceKey = Annotated[Caller, Depends(require_inference)]
FilesKey = Annotated[Caller, Depends(require_files)]
TrainingKey = Annotated[Caller, Depends(require_training)]
MakerKey = Annotated[Caller, Depends(require_maker)]
ModelsKey = Annotated[Caller, Depends(require_models)]
AdminKey = Annotated[Caller, Depends(require_admin)]
SomeAdminKey = Annotated[Caller, Depends(require_some_admin)]
ReaderKey = Annotated[Caller, Depends(require_reader)]
SomeReaderKey = Annotated[Caller, Depends(require_some_reader)]
MetricsKey = Annotated[Caller, Depends(require_metrics)]
Open = Annotated[None, Depends(open_to_all)]

_STATEMENTS = (
    require_inference,
    require_models,
    require_files,
    require_training,
    require_maker,
    require_admin,
    require_some_admin,
    require_reader,
    require_some_reader,
    require_metrics,
    open_to_all,
)


def check_stated(routes: Iterable[BaseRoute]) -> None:
    """Assert that each of ``routes`` states which keys it is for."""
    for route in routes:
        if isinstance(route, APIRoute):
            stated = [dependency for dependency in route.dependant.dependencies if dependency.call in _STATEMENTS]
            assert len(stated) == 1, f"{route.path} does not state which keys it is for"


# ---- inside ----


BEHIND = "behind"  # where a request of this server's own says for whom it is: no client can write there


def owner_caller(context: ServerContext, owner: str) -> Caller | None:
    """Who sends the requests of a batch of ``owner``; None where that may not infer any more."""
    config, now = context.config, time.time()
    if (record := context.keys.ring.get(owner)) is not None:
        good = record.state(now) is KeyState.ACTIVE and record.grants(Scope.INFERENCE)
        return Caller(record.id, record.scopes, record.id, record, record.id, behind=True) if good else None
    if owner in map(_owner, (*config.admin_keys, *config.api_keys)):
        return Caller(FLAG, (Scope.INFERENCE,), owner, owner=owner, behind=True)
    return Caller(LOCAL, (Scope.INFERENCE,), behind=True) if not owner and context.access.inference_is_open else None


def _inferring(request: Request, context: ServerContext, *scopes: Scope) -> Caller:
    if isinstance(own := request.scope["state"].get(BEHIND), Caller):
        return _known(request, context, own)
    if context.access.inference_is_open:
        if (caller := _identified(request, context)) is not None:
            return caller  # a page that has a key was given it
        _refuse_pages(request, context)
        return _known(request, context, Caller(ANONYMOUS))
    return _admitted(request, context, *scopes)


def _administering(request: Request, context: ServerContext, *scopes: Scope) -> Caller:
    if context.access.admin_is_open:
        refusal = "without --admin-key the admin API answers only local programs"
        try:
            check_local(request.headers, allowed=(), any_host=False, refusal=refusal)
        except ApiError as error:
            raise refused_caller(request, context, ANONYMOUS, error) from None
        return _known(request, context, Caller(LOCAL, tuple(Scope)))
    return _admitted(request, context, *scopes)


def _admitted(request: Request, context: ServerContext, *scopes: Scope) -> Caller:
    """Whoever has a key for one of ``scopes``. Raises ApiError."""
    caller = _identified(request, context)
    if caller is not None and caller.grants(*scopes):
        return caller
    refusal = forbidden(f"this key may not {_NEEDED[scopes[0]]}") if caller is not None else _unauthorized()
    if Scope.ADMIN in scopes and not context.access.has_admin_keys:
        refusal = ApiError(
            403,
            "the admin API is off: start the server with --admin-key, or create an admin key with hotswap keys create "
            "on the machine that has its catalog",
            type="permission_error",
            code="admin_disabled",
        )
    raise refused_caller(request, context, caller.name if caller else ANONYMOUS, refusal)


def _of_the_path(request: Request, context: ServerContext, caller: Caller) -> Caller:
    """``caller``, if what the path names exists for it: default deny, so a path that names no adapter is not for it."""
    if caller.adapters is None:
        return caller
    name, model = request.path_params.get("name"), request.path_params.get("model")
    try:
        if name is not None and request.method == "PUT":
            caller.check_new(name)
        elif name is not None:
            caller.check_adapter(name)
        elif model is not None:
            caller.check_model(context.registry, model)
        else:
            raise forbidden("this key is only for " + _listed(caller.adapters))
    except (ApiError, ServerError) as error:
        raise refused_caller(request, context, caller.name, error) from None
    return caller


def _identified(request: Request, context: ServerContext) -> Caller | None:
    """Whose key the request bears; None where it is nobody's. Raises ApiError for one that has ended, if any is asked.

    Raises EngineUnavailableError where that is not known yet: it may be good, or none may be needed.

    Keys of flags may be words that somebody guesses, so that the time taken must say nothing: all are compared, always.
    """
    secret = _secret(request)
    digest = hashlib.sha256(secret).digest()
    is_admin, infers = _matches(digest, context.config.admin_keys), _matches(digest, context.config.api_keys)
    if is_admin or infers:
        scope = Scope.ADMIN if is_admin else Scope.INFERENCE
        return _known(request, context, Caller(FLAG, (scope,), _tenant(digest, context), owner=_owner(digest)))
    now = time.time()
    record = context.keys.ring.find(digest.hex(), now)
    if record is None:
        if not context.keys.ring.is_known:
            raise EngineUnavailableError("the server is starting and has not read its keys yet; try again")
        return None
    if (state := record.state(now)) is not KeyState.ACTIVE:
        how = "was revoked" if state is KeyState.REVOKED else "has expired"
        ended = _unauthorized(f"the API key {record.id} {how}")
        raise refused_caller(request, context, record.id, ended)
    context.keys.used(record.id, now)
    request.scope["state"]["record"].facts["key"] = record.id
    return _known(request, context, Caller(record.id, record.scopes, record.id, record, record.id))


def _known(request: Request, context: ServerContext, caller: Caller) -> Caller:
    """``caller``, noted for the log and the audit trail."""
    note_caller(request, caller.name)
    request.scope["state"]["caller"] = caller
    return caller


def _tenant(digest: bytes, context: ServerContext) -> str:
    """Of a key of a flag; the only key of a server needs none."""
    config = context.config
    several = len(config.api_keys) + len(config.admin_keys) > 1 or not context.keys.ring.is_empty
    return digest.hex()[:32] if several and not context.access.inference_is_open else ""


def _owner(digest: bytes) -> str:
    """Whose things are those of a key of a flag: tells such keys apart, and little of the key to who reads it."""
    return f"flag-{hashlib.sha256(b'owner' + digest).hexdigest()[:16]}"


def _refuse_pages(request: Request, context: ServerContext) -> None:
    """No key is asked for, so a page on the web could use this server through the browser of whoever reaches it."""
    refusal = (
        "without --api-key this server answers only programs and pages of its own machine; "
        "its operator can allow a page's origin with --cors-origin"
    )
    allowed = context.config.cors_origin
    check_local(request.headers, allowed=allowed, any_host=not context.config.is_loopback, refusal=refusal)


def _secret(request: Request) -> bytes:
    """The key as clients of OpenAI's API send it, or else as those of Anthropic's do."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = request.headers.get("x-api-key", "")
    return key.strip().encode("utf-8", "surrogateescape")


def _matches(digest: bytes, keys: Iterable[bytes]) -> bool:
    found = False
    for key in keys:
        found |= hmac.compare_digest(digest, key)
    return found


def _listed(patterns: tuple[str, ...] | None) -> str:
    shown = (patterns or ())[:8]
    return ", ".join(shown) + (", ..." if len(patterns or ()) > len(shown) else "") or "no adapter"


def forbidden(message: str) -> ApiError:
    """The refusal of a key that is known, and not for this."""
    return ApiError(403, message, type="permission_error", code="insufficient_permissions")


_WRONG = "the API key is missing or wrong; send it as `Authorization: Bearer <key>`"


def _unauthorized(reason: str = _WRONG) -> ApiError:
    return ApiError(401, reason, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
