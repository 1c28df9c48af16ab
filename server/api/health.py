"""Probes, version and metrics."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from server.api.auth import MetricsKey, Open
from server.api.context import AdmissionDep, ContextDep, EngineDep, MetricsDep
from server.api.error_responses import json_response
from server.errors import EngineUnavailableError

router = APIRouter()


@router.get("/health", response_model=None)
async def health(_: Open, admission: AdmissionDep, engine: EngineDep) -> Response:
    """The process lives, and so does its engine; 200 while loading and draining, 503 while a lost engine restarts."""
    if not admission.closed_because and engine.unavailable:
        raise EngineUnavailableError(engine.unavailable)
    return json_response({"status": "ok"})


@router.get("/ping", response_model=None)
@router.post("/ping", response_model=None)
async def ping(_: Open, admission: AdmissionDep, engine: EngineDep) -> Response:
    """/health, by the name that platforms look for which host models."""
    return await health(None, admission, engine)


@router.get("/ready", response_model=None)
async def ready(_: Open, admission: AdmissionDep, engine: EngineDep) -> Response:
    """Whether requests are served now; 503 while loading, restarting or draining."""
    if admission.closed_because:
        raise EngineUnavailableError(admission.closed_because)
    if engine.unavailable:
        raise EngineUnavailableError(engine.unavailable)
    return json_response({"status": "ready"})


@router.get("/version", response_model=None)
async def version(_: Open, context: ContextDep) -> Response:
    """The server's version."""
    return json_response({"version": context.version})


@router.get("/load", response_model=None)
async def load(_: MetricsKey, admission: AdmissionDep) -> Response:
    """How many requests are being answered, as routers that balance between servers ask vLLM's."""
    return json_response({"server_load": admission.requests})


@router.get("/metrics", response_model=None)
async def metrics(_: MetricsKey, metrics: MetricsDep) -> Response:
    """Prometheus exposition."""
    return Response(await metrics.render_off_loop(), media_type=CONTENT_TYPE_LATEST)
