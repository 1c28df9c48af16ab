"""The admin API: adapters and their versions come, go live and leave while requests run. Every change is audited."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field, model_validator
from starlette.responses import Response

from adapters.errors import AdapterError
from server.adapter_key import AdapterKey, version_number
from server.api import sources, uploads
from server.api.audit import audit, audit_refusal, refusals_audited
from server.api.auth import AdminKey, ReaderKey, SomeAdminKey, SomeReaderKey, caller_of
from server.api.body import json_body
from server.api.context import ContextDep, LifecycleDep, ServerContext
from server.api.error_responses import ApiError, json_response
from server.api.name_settings import SettingsBody, settings_body
from server.api.preconditions import GuardDep, etag_of, unmodified
from server.api.traffic_body import Number, TrafficFields, traffic_body
from server.api.wire_fields import Integer, Wire
from server.catalog.activating import Activation
from server.catalog.guard import Guard, state_of
from server.catalog.registry import Registry
from server.catalog.sources import shown
from server.catalog.versions import AdapterVersion, VersionState
from server.errors import ConflictError, EngineUnavailableError, ServerError

_TOO_MANY = "too_many_candidates"
_OF_LIVE = ("version", "digest", "kind", "bytes", "num_virtual_tokens", "created", "state", "reason")


def adapter_body(context: ServerContext, name: str) -> dict[str, Any]:
    """One name: what is known of its live version (all None before there is one), its versions and shares."""
    registry = context.registry
    versions = [version_body(registry, version) for version in registry.versions(name)]
    none: dict[str, Any] = {"id": name, "name": name, "warnings": [], **dict.fromkeys(_OF_LIVE)}
    live = none if registry.live_number(name) is None else version_body(registry, registry.live(name))
    running = sum(version["running"] for version in versions)
    settings = settings_body(registry.settings(name))
    etag = state_of(name, registry.history(name)).etag
    decided = {**settings, "traffic": traffic_body(context, name), "etag": etag}
    for version in versions:
        version["residency"] = context.residency.tier(AdapterKey(name, version["version"], version["digest"]))
    where = next((version["residency"] for version in versions if version["version"] == live["version"]), None)
    decided["residency"] = where
    return {**live, "object": "adapter", "running": running, **decided, "versions": versions}


def version_body(registry: Registry, version: AdapterVersion) -> dict[str, Any]:
    """One version that is kept. ``reason``: why it failed, None unless it did."""
    key = version.key
    return _version_body(version, registry.state(key), registry.running(key), registry.failure(key))


def _version_body(
    version: AdapterVersion, state: VersionState, running: int = 0, reason: str | None = None
) -> dict[str, Any]:
    key = version.key
    return {
        "object": "adapter.version",
        "id": str(key),
        "name": key.name,
        "version": key.version,
        "digest": key.digest,
        "kind": version.kind,
        "bytes": version.nbytes,
        "num_virtual_tokens": version.num_virtual_tokens,
        "created": int(version.created),
        "state": state.value,
        "reason": reason,
        "running": running,
        "warnings": list(version.warnings),
    }


router = APIRouter()
ExpectedLive = Annotated[int | None, Query(ge=0)]
Mode = Annotated[Literal["drain", "force"], Query()]


@router.post("/v1/adapters", response_model=None)
async def upload(
    _: SomeAdminKey,
    request: Request,
    context: ContextDep,
    guard: GuardDep,
    *,
    name: str | None = None,
    replace: bool = False,
    activate: bool = True,
    allow_noop: bool = False,
    expected_live: ExpectedLive = None,
) -> Response:
    """Serve a package, uploaded or named as a JSON ``source``, under a new name; ``replace``: also one that exists.

    With ``activate`` false it only becomes a candidate.
    """
    guard.expected_live = expected_live
    return await _upload(request, context, name, guard, replace=replace, activate=activate, allow_noop=allow_noop)


@router.put("/v1/adapters/{name}", response_model=None)
async def put(
    _: AdminKey,
    request: Request,
    context: ContextDep,
    guard: GuardDep,
    name: str,
    *,
    activate: bool = True,
    allow_noop: bool = False,
    expected_live: ExpectedLive = None,
) -> Response:
    """Serve an uploaded package under ``name``, as its next version if the name exists."""
    guard.expected_live = expected_live
    return await _upload(request, context, name, guard, replace=True, activate=activate, allow_noop=allow_noop)


@router.get("/v1/adapters", response_model=None)
async def list_adapters(caller: SomeReaderKey, context: ContextDep) -> Response:
    """All adapters that are served or have a candidate."""
    data = [adapter_body(context, name) for name in filter(caller.sees, context.registry.known_names())]
    return json_response({"object": "list", "data": data})


@router.get("/v1/adapters/{name}", response_model=None)
async def inspect(_: ReaderKey, context: ContextDep, guard: GuardDep, name: str) -> Response:
    """One adapter, with its versions and what the trainer of the live one recorded."""
    registry, body = context.registry, adapter_body(context, name)
    state = state_of(name, registry.history(name))
    if (answer := unmodified(guard, state)) is not None:
        return answer
    manifest = registry.live(name).manifest if body["version"] is not None else None
    return json_response({**body, "manifest": manifest}, headers=etag_of(state))


@router.get("/v1/adapters/{name}/versions/{version}", response_model=None)
async def inspect_version(_: ReaderKey, context: ContextDep, name: str, version: str) -> Response:
    """One version, with what its trainer recorded."""
    found = context.registry.version(name, _number(version))
    tier = context.residency.tier(found.key)
    body = {**version_body(context.registry, found), "residency": tier, "manifest": found.manifest}
    return json_response(body)


def _number(version: str) -> int:
    """The number that a path names. Raises ApiError."""
    number = version_number(version)
    if number is None:
        raise ApiError(400, "version: must be a version's number, like 3", param="version")
    return number


@router.delete("/v1/adapters/{name}", response_model=None)
async def delete(
    _: AdminKey, request: Request, lifecycle: LifecycleDep, guard: GuardDep, name: str, mode: Mode = "drain"
) -> Response:
    """Stop serving a name: running requests finish (drain) or are ended (force)."""
    with refusals_audited(request, name, "remove"):
        versions = await lifecycle.remove(name, force=mode == "force", guard=guard)
    warnings = lifecycle.undeleted(versions)
    numbers = [version.key.version for version in versions]
    audit(request, "remove", name, mode=mode, versions=numbers, **_noted(warnings))
    body = {"object": "adapter.deleted", "name": name, "deleted": True, "mode": mode, **_noted(warnings)}
    return json_response(body, headers=etag_of(guard.after))


async def _upload(
    request: Request,
    context: ServerContext,
    name: str | None,
    guard: Guard,
    *,
    replace: bool,
    activate: bool,
    allow_noop: bool,
) -> Response:
    if context.admission.closed_because:
        raise EngineUnavailableError(context.admission.closed_because)
    try:
        if name is not None:  # before the body is read
            _check_name(request, context, name)
            guard.check_tags(state_of(name, context.registry.history(name)))
        async with _receive(request, context) as received:
            name = name or received.fields.get("name")
            if not name:
                raise ApiError(
                    400, "say what to call the adapter, in the field or query parameter `name`", param="name"
                )
            _check_name(request, context, name)
            guard.expected_live = received.number("expected_live", default=guard.expected_live)
            done = await context.lifecycle.upload(
                name,
                received.package,
                activate=activate and received.flag("activate", default=True),
                replace=received.flag("replace") or replace,
                allow_noop=received.flag("allow_noop") or allow_noop,
                guard=guard,
            )
    except (AdapterError, ServerError, ApiError) as error:
        audit_refusal(request, name, "upload", error)
        if (
            getattr(error, "code", None) == _TOO_MANY and caller_of(request).adapters is not None
        ):  # whose names are nobody's business
            raise ConflictError("too many candidates are resident; activate or delete some", code=_TOO_MANY) from error
        raise
    key = done.version.key
    evicted = {"evicted": [version.key.version for version in done.evicted]} if done.evicted else {}
    source = {"source": shown(received.source)} if received.source else {}
    audit(request, done.action, name, version=key.version, digest=key.digest, **source, **evicted)
    # As it was when it was done: somebody may have deleted it since.
    body = {**_version_body(done.version, done.state, context.registry.running(key)), **evicted, **_base(context)}
    return json_response(body, 200 if done.action in ("restore", "unchanged") else 201, etag_of(guard.after))


def _receive(request: Request, context: ServerContext) -> AbstractAsyncContextManager[uploads.Upload]:
    """The package that a body holds, or names."""
    if sources.is_json(request):
        return sources.receive(request, context)
    return uploads.receive(request, context.lifecycle.store, context.config.max_upload_mb)


def _check_name(request: Request, context: ServerContext, name: str) -> None:
    context.registry.check_new_name(name)
    caller_of(request).check_new(name)


def _base(context: ServerContext) -> dict[str, str]:
    return {"base_fingerprint": context.engine.info.base_fingerprint}


def _noted(warnings: list[str]) -> dict[str, list[str]]:
    return {"warnings": warnings} if warnings else {}


class _Precondition(Wire):
    """What both changes share. ``expected_live``: change nothing unless this version is live (0: none)."""

    expected_live: Integer | None = Field(None, ge=0)


class ChangeBody(SettingsBody, TrafficFields, _Precondition):
    """``PATCH /v1/adapters/{name}``: the live ``version``, or settings, or shares. 0: no version is given."""

    unsupported: ClassVar[dict[str, str]] = {
        "weights": "give `canary`, with a version and its weight; the live version has the rest",
        "pin": "give `pinned`",
    }

    version: Number = 0

    @model_validator(mode="after")
    def _check_kinds(self) -> ChangeBody:
        kinds = [*(["version"] if self.version else []), *self.given[:1], *self.shares_given[:1]]
        if not kinds:
            raise ValueError("`version` is missing, or a setting to change, such as `pinned`, `weight` or `canary`")
        if len(kinds) > 1:
            raise ValueError(f"`{kinds[1]}` and `{kinds[0]}` are changes of one kind each; send two requests")
        return self


class RollbackBody(_Precondition):
    """``POST /v1/adapters/{name}/rollback``."""

    version: Number | None = None


@router.patch("/v1/adapters/{name}", response_model=None)
async def change(
    _: AdminKey,
    request: Request,
    context: ContextDep,
    guard: GuardDep,
    name: str,
    body: Annotated[ChangeBody, Depends(json_body(ChangeBody))],
) -> Response:
    """Activate a version, a candidate or one that was live before; or change settings or shares of the name."""
    guard.expected_live = body.expected_live
    if body.shares_given:
        return await _share_out(request, context, guard, name, body)
    if not body.version:
        return await _set(request, context, guard, name, body)
    with refusals_audited(request, name, "activate", version=body.version):
        activation = await context.lifecycle.activate(name, body.version, guard=guard)
    return activated(request, context.registry, activation, "activate", guard)


async def _set(request: Request, context: ServerContext, guard: Guard, name: str, body: SettingsBody) -> Response:
    settings = body.model_dump(include=set(body.given), exclude_unset=True)
    with refusals_audited(request, name, "set", settings=settings):
        changed = await context.lifecycle.configure(name, body.applied, guard=guard)
    audit(request, "set" if changed else "unchanged", name, settings=settings)
    return json_response(adapter_body(context, name), headers=etag_of(guard.after))


async def _share_out(
    request: Request, context: ServerContext, guard: Guard, name: str, body: TrafficFields
) -> Response:
    shares = body.model_dump(include=set(body.shares_given), exclude_unset=True)
    with refusals_audited(request, name, "canary", **shares):
        changed = await context.traffic.change(name, body.traffic_plan(), guard=guard)
    audit(request, "canary" if changed else "unchanged", name, **shares)
    return json_response({**adapter_body(context, name), "changed": changed}, headers=etag_of(guard.after))


@router.post("/v1/adapters/{name}/rollback", response_model=None)
async def rollback(_: AdminKey, request: Request, lifecycle: LifecycleDep, guard: GuardDep, name: str) -> Response:
    """Activate the version that was live before, or the one that an optional body names."""
    raw = await request.body()
    body = await json_body(RollbackBody)(request) if raw.strip() else RollbackBody.model_validate({})
    guard.expected_live = body.expected_live
    with refusals_audited(request, name, "rollback", version=body.version):
        activation = await lifecycle.rollback(name, body.version, guard=guard)
    return activated(request, lifecycle.registry, activation, "rollback", guard)


@router.delete("/v1/adapters/{name}/versions/{version}", response_model=None)
async def delete_version(
    _: AdminKey,
    request: Request,
    lifecycle: LifecycleDep,
    guard: GuardDep,
    name: str,
    version: str,
    *,
    mode: Mode = "drain",
) -> Response:
    """Delete a version that is not live: a candidate, or one that nobody will go back to."""
    with refusals_audited(request, name, "remove_version", version=version_number(version) or 0):
        number = _number(version)
        deleted = await lifecycle.remove_version(name, number, force=mode == "force", guard=guard)
    warnings = lifecycle.undeleted([deleted])
    audit(request, "remove_version", name, mode=mode, version=number, digest=deleted.key.digest, **_noted(warnings))
    return json_response(
        {
            "object": "adapter.version.deleted",
            "id": str(deleted.key),
            "name": name,
            "version": number,
            "digest": deleted.key.digest,
            "deleted": True,
            "mode": mode,
            **_noted(warnings),
        },
        headers=etag_of(guard.after),
    )


def activated(request: Request, registry: Registry, activation: Activation, action: str, guard: Guard) -> Response:
    """The version that is live now; ``replaced`` is the number of the one before it."""
    key, replaced = activation.version.key, activation.replaced.key.version if activation.replaced else None
    done = action if activation.changed else "unchanged"
    audit(request, done, key.name, version=key.version, digest=key.digest, replaced=replaced)
    body = _version_body(activation.version, VersionState.LIVE, registry.running(key))
    body |= {"replaced": replaced, "changed": activation.changed}
    return json_response(body, headers=etag_of(guard.after))
