"""``/v1/fine_tuning``: jobs that make adapters of uploaded files, and what is told of them."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AfterValidator, Field, field_validator
from starlette.responses import Response

from adapters.names import tuned_name
from server.adapter_key import AdapterKey
from server.api.audit import audit, refusals_audited
from server.api.auth import Caller, TrainingKey
from server.api.body import json_body
from server.api.context import ContextDep, FineTuningDep, ServerContext
from server.api.error_responses import ApiError, json_response
from server.api.event_stream import DONE, NOT_TAKEN, EventStream, event, with_errors
from server.api.files import Cursor
from server.api.pages import page_body
from server.api.wire import MAX_MODEL_CHARS
from server.api.wire_fields import Integer, Metadata, Wire
from server.catalog.files import FileRecord, Purpose
from server.errors import InvalidRequestError, NotFoundError
from server.fine_tuning.dataset import read_adapter_config
from server.fine_tuning.job import (
    FineTuningJob,
    Hyperparameters,
    checkpoint_data,
    event_data,
    job_data,
)
from server.fine_tuning.service import FineTuning, Wanted
from server.fine_tuning.settings import method_of

router = APIRouter()
JOBS_PATH = "/v1/fine_tuning/jobs"
MAX_SUFFIX = 64
MAX_EPOCHS, MAX_BATCH, MAX_MULTIPLIER, MAX_BETA = 50, 256, 100.0, 2.0
_SUFFIX = re.compile(r"[A-Za-z0-9._-]*")
Limit = Annotated[int, Query(ge=0, le=100)]


def check_suffix(suffix: str) -> str:
    """A part of a model's name. Raises ValueError."""
    if not _SUFFIX.fullmatch(suffix):
        raise ValueError("may have letters, digits, '.', '_' and '-'")
    return suffix


class HyperparametersBody(Wire):
    """Numbers, or ``auto``: by how many rows there are."""

    n_epochs: Literal["auto"] | Annotated[Integer, Field(ge=1, le=MAX_EPOCHS)] = "auto"
    batch_size: Literal["auto"] | Annotated[Integer, Field(ge=1, le=MAX_BATCH)] = "auto"
    learning_rate_multiplier: Literal["auto"] | Annotated[float, Field(gt=0, le=MAX_MULTIPLIER)] = "auto"
    beta: Literal["auto"] | Annotated[float, Field(gt=0, le=MAX_BETA)] = "auto"

    def read(self) -> Hyperparameters:
        """As jobs keep them."""
        return Hyperparameters(**self.model_dump())


class MethodPart(Wire):
    """What is said of one method."""

    hyperparameters: HyperparametersBody = Field(default_factory=HyperparametersBody)


class MethodBody(Wire):
    """How to learn: from answers, or from preferences."""

    type: str = Field(max_length=64)
    supervised: MethodPart | None = None
    dpo: MethodPart | None = None

    @field_validator("type")
    @classmethod
    def _known(cls, type: str) -> str:
        if type == "reinforcement":
            raise ValueError("reinforcement is not supported here; use supervised, or dpo for preferences")
        if type not in ("supervised", "dpo"):
            raise ValueError("must be supervised or dpo")
        return type


class JobBody(Wire):
    """``POST /v1/fine_tuning/jobs``."""

    model: str = Field(min_length=1, max_length=MAX_MODEL_CHARS)
    training_file: str = Field(min_length=1, max_length=64)
    validation_file: str | None = Field(None, min_length=1, max_length=64)
    suffix: Annotated[str, Field(max_length=MAX_SUFFIX), AfterValidator(check_suffix)] | None = None
    seed: Annotated[Integer, Field(ge=0, lt=2**31)] | None = None
    hyperparameters: HyperparametersBody | None = None
    method: MethodBody | None = None
    metadata: Metadata | None = None
    integrations: Any = None

    @field_validator("integrations")
    @classmethod
    def _no_integrations(cls, integrations: Any) -> Any:
        if not integrations:
            return None
        first = integrations[0] if isinstance(integrations, list) else integrations
        kind = first.get("type") if isinstance(first, dict) else None
        name = kind if isinstance(kind, str) and kind.isidentifier() and len(kind) < 32 else "these"
        raise ValueError(
            f"{name} is not supported here: this server sends nothing to other services. Read the job's events, or its "
            "result file, which have the same figures"
        )


def check_method(body: JobBody) -> tuple[Literal["supervised", "dpo"], Hyperparameters]:
    """The method that a body asks for. Raises InvalidRequestError where it says two things of it."""
    if body.method is None:
        return "supervised", (body.hyperparameters or HyperparametersBody()).read()
    kind: Literal["supervised", "dpo"] = "dpo" if body.method.type == "dpo" else "supervised"
    part = body.method.dpo if kind == "dpo" else body.method.supervised
    other = body.method.supervised if kind == "dpo" else body.method.dpo
    if other is not None and part is None:
        raise InvalidRequestError(f"method: the type is {kind}, and what is said is of the other one", param="method")
    given = part.hyperparameters if part is not None else body.hyperparameters or HyperparametersBody()
    return kind, given.read()


@router.post(JOBS_PATH, response_model=None)
async def create_job(
    caller: TrainingKey, request: Request, context: ContextDep, body: Annotated[JobBody, Depends(json_body(JobBody))]
) -> Response:
    """Train on uploaded files; what comes of it is served as ``fine_tuned_model``."""
    with refusals_audited(request, None, "fine_tuning.create", model=body.model[:128]):
        kind, hyperparameters = check_method(body)
        start = await _start(caller, context, body.model)
        files = [await _file(caller, context, body.training_file, "training_file")]
        if body.validation_file is not None:
            files.append(await _file(caller, context, body.validation_file, "validation_file"))
        organization = context.config.organization
        job = FineTuningJob(
            model=body.model,
            name=_name(caller, context, body.suffix or ""),
            training_file=files[0].id,
            validation_file=body.validation_file,
            seed=body.seed if body.seed is not None else secrets.randbelow(2**31),
            method=kind,
            hyperparameters=hyperparameters,
            metadata=body.metadata,
            start=str(start) if start is not None else None,
            organization=organization,
        )
        row = await context.fine_tuning.create(job, caller.owner, files)
    audit(request, "fine_tuning.create", row.id, model=body.model)
    return json_response(job_data(row))


async def _start(caller: Caller, context: ServerContext, model: str) -> AdapterKey | None:
    """The adapter version that training is to begin with; None for the base. Raises UnknownModelError, ApiError."""
    caller.check_model(context.registry, model)
    key = context.registry.resolve(model)
    if key is None:
        return None
    with context.registry.lease(str(key)):
        path, store = context.registry.leased(key).path, context.lifecycle.store
        with store.held(path):
            await store.run(store.fetch, path)
            config = await asyncio.to_thread(read_adapter_config, path)
    if method_of(config) is None:
        raise ApiError(
            400,
            f"model: training can go on from the base and from LoRA adapters, and {model!r} is another kind of adapter",
            param="model",
        )
    return key


async def _file(caller: Caller, context: ServerContext, id: str, param: str) -> FileRecord:
    try:
        record = await context.files.get(id, caller.sees_owner)
    except NotFoundError as error:
        raise ApiError(400, f"{param}: {error}", param=param, code="file_not_found") from error
    if record.purpose is not Purpose.FINE_TUNE:
        said = f"has the purpose {record.purpose.value}; upload it with the purpose fine-tune"
        raise ApiError(400, f"{param}: the file {record.id} {said}", param=param, code="invalid_purpose")
    return record


def _name(caller: Caller, context: ServerContext, suffix: str) -> str:
    """What the result is called. Raises ApiError where its maker could not see it."""
    name = tuned_name(context.base_name, context.config.organization, suffix, secrets.token_hex(4))
    if not caller.sees(name):
        pattern = name.rpartition(":")[0] + ":*"
        raise ApiError(
            403,
            f"this key would not see the model that the job makes, {name}; let it have the pattern {pattern}",
            type="permission_error",
            code="insufficient_permissions",
        )
    return name


@router.get(JOBS_PATH, response_model=None)
async def list_jobs(
    caller: TrainingKey, request: Request, jobs: FineTuningDep, *, after: Cursor = None, limit: Limit = 20
) -> Response:
    """The caller's jobs, newest first; with ``metadata[KEY]=VALUE`` those that have it."""
    accepts = metadata_filter(request)
    found = await jobs.find(caller.sees_owner, after=after, limit=limit + 1, accepts=lambda job: accepts(job.metadata))
    return json_response(page_body([job_data(row) for row in found], limit))


def metadata_filter(request: Request) -> Callable[[dict[str, str] | None], bool]:
    """Which metadata a list is asked for: all given pairs, or with ``metadata=null`` none."""
    wanted: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name.startswith("metadata[") and name.endswith("]"):
            wanted[name[len("metadata[") : -1]] = value
    if request.query_params.get("metadata") == "null":
        if wanted:
            raise ApiError(400, "metadata: ask for null or for pairs, not for both", param="metadata")
        return lambda metadata: not metadata
    return lambda metadata: wanted.items() <= (metadata or {}).items()


@router.get("/v1/fine_tuning/jobs/{job_id}", response_model=None)
async def retrieve_job(caller: TrainingKey, jobs: FineTuningDep, job_id: str) -> Response:
    """One job."""
    return json_response(job_data(await jobs.get(job_id, caller.sees_owner)))


async def _want(caller: Caller, request: Request, jobs: FineTuning, id: str, wish: Wanted) -> Response:
    with refusals_audited(request, id, f"fine_tuning.{wish}"):
        row = await jobs.want(id, caller.sees_owner, wish)
    audit(request, f"fine_tuning.{wish}", id)
    return json_response(job_data(row))


@router.post("/v1/fine_tuning/jobs/{job_id}/cancel", response_model=None)
async def cancel_job(caller: TrainingKey, request: Request, jobs: FineTuningDep, job_id: str) -> Response:
    """End a job at once; nothing of it is served."""
    return await _want(caller, request, jobs, job_id, "cancel")


@router.post("/v1/fine_tuning/jobs/{job_id}/pause", response_model=None)
async def pause_job(caller: TrainingKey, request: Request, jobs: FineTuningDep, job_id: str) -> Response:
    """Stop a job after its step, with a checkpoint, until it is resumed."""
    return await _want(caller, request, jobs, job_id, "pause")


@router.post("/v1/fine_tuning/jobs/{job_id}/resume", response_model=None)
async def resume_job(caller: TrainingKey, request: Request, jobs: FineTuningDep, job_id: str) -> Response:
    """Let a paused job go on, exactly where it stopped."""
    return await _want(caller, request, jobs, job_id, "resume")


@router.get("/v1/fine_tuning/jobs/{job_id}/events", response_model=None)
async def list_events(
    caller: TrainingKey,
    request: Request,
    context: ContextDep,
    job_id: str,
    *,
    after: Cursor = None,
    limit: Limit = 20,
    stream: bool = False,
) -> Response:
    """What happened in a job, newest first; as a ``stream`` oldest first, and on until the job ends."""
    jobs = context.fine_tuning
    row = await jobs.get(job_id, caller.sees_owner)
    if stream:
        comments = context.config.stream_comment_seconds
        failed = request.scope["state"]["record"].note_error
        return await EventStream.begin(
            request,
            with_errors(_stream(jobs, row.id), failed, lambda error: event(error.body()) + DONE),
            {},
            comment_seconds=comments,
            cut=asyncio.Event(),
            not_taken=lambda: event(NOT_TAKEN.body()) + DONE,
        )
    found = await jobs.events(row.id, after=_event_number(after), limit=limit + 1)
    return json_response(page_body([event_data(event) for event in found], limit))


async def _stream(jobs: FineTuning, id: str) -> AsyncGenerator[bytes, None]:
    yield b""
    async for found in jobs.follow(id):
        for item in found:
            yield event(event_data(item))
    yield DONE


def _event_number(after: str | None) -> int | None:
    if after is None:
        return None
    number = after.removeprefix("ftevent-")
    if not number.isdecimal() or len(number) > 18:
        raise ApiError(400, "after: must be the id of an event", param="after")
    return int(number)


@router.get("/v1/fine_tuning/jobs/{job_id}/checkpoints", response_model=None)
async def list_checkpoints(
    caller: TrainingKey, jobs: FineTuningDep, job_id: str, *, after: Cursor = None, limit: Limit = 10
) -> Response:
    """The checkpoints of a job that are served, newest first: the result, and others that were kept."""
    data = checkpoint_data(await jobs.get(job_id, caller.sees_owner))
    if after is not None:
        ids = [item["id"] for item in data]
        if after not in ids:
            raise ApiError(400, "after: must be the id of a checkpoint of this job", param="after")
        data = data[ids.index(after) + 1 :]
    return json_response(page_body(data, limit))


_PERMISSIONS = "/v1/fine_tuning/checkpoints/{checkpoint:path}/permissions"
_NO_PERMISSIONS = ApiError(
    400,
    "permissions of checkpoints are not supported here: what a key may use is said by its adapters (PATCH /v1/keys/ID)",
    param="checkpoint",
    code="not_supported",
)


@router.get(_PERMISSIONS, response_model=None)
async def list_permissions(_: TrainingKey, checkpoint: str) -> Response:
    """Refused: keys have names and patterns of adapters."""
    raise _NO_PERMISSIONS


@router.post(_PERMISSIONS, response_model=None)
async def create_permission(_: TrainingKey, checkpoint: str) -> Response:
    """Refused: keys have names and patterns of adapters."""
    raise _NO_PERMISSIONS


@router.delete(_PERMISSIONS + "/{permission_id}", response_model=None)
async def delete_permission(_: TrainingKey, checkpoint: str, permission_id: str) -> Response:
    """Refused: keys have names and patterns of adapters."""
    raise _NO_PERMISSIONS
