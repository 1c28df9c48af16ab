"""The API described: /openapi.json, and /docs, a page made from it that loads nothing from anywhere.

Bodies are parsed by dependencies of our own, which FastAPI does not see: what a route takes is read from the types of
its parameters, and written here where the route reads the body itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, get_type_hints

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute

from server.api.admin import RollbackBody
from server.api.answer_schemas import ANSWERS, BYTES, ERROR, EVENT, MESSAGES_ERROR, PERHAPS_BYTES, PLAIN, TEXT
from server.api.anthropic_messages.errors import MESSAGES_PATH
from server.api.auth import open_to_all
from server.api.error_responses import json_response
from server.api.file_uploads import PARTS_PATH
from server.api.files import FILES_PATH, UPLOADED
from server.api.keys import RotationBody
from server.api.leasing import SESSION_HEADER
from server.api.preconditions import read_guard
from server.api.sharing import TIMEOUT_HEADER
from server.api.sources import SourceBody
from server.api.traffic import AbortBody, PromoteBody
from server.api.wire_fields import Wire
from server.catalog.files import MAX_EXPIRY, MIN_EXPIRY

_OPTIONAL: dict[str, type[Wire]] = {
    "rollback": RollbackBody,
    "promote": PromoteBody,
    "abort": AbortBody,
    "rotate": RotationBody,
}
_GENERATING = (
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/responses",
    MESSAGES_PATH,
)
_REF = "#/components/schemas/{model}"
_SWITCH = {"type": "boolean"}
_UPLOAD = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "one archive, or each file of the package"},
        "name": TEXT,
        **dict.fromkeys(("replace", "activate", "allow_noop"), _SWITCH),
    },
}

_FILE = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": list(UPLOADED)},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": MIN_EXPIRY, "maximum": MAX_EXPIRY},
    },
}

_PART = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": {"type": "string", "format": "binary"}},
}


def install(app: FastAPI, routers: Sequence[APIRouter], *, version: str, root_path: str) -> None:
    """Serve the description of ``app``, which has the routes of ``routers``."""
    schema = describe(app, routers, version)
    if root_path:
        schema["servers"] = [{"url": root_path}]
    page = docs_page(schema)

    async def openapi_json(_: Request) -> Response:
        return json_response(schema)

    async def docs(_: Request) -> Response:
        return HTMLResponse(page, headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"})

    app.add_route("/openapi.json", openapi_json)
    app.add_route("/docs", docs)


def describe(app: FastAPI, routers: Sequence[APIRouter], version: str) -> dict[str, Any]:
    """The OpenAPI document."""
    schema = get_openapi(title="hotswap", version=version, routes=app.routes)
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    bodies: set[type[Wire]] = {SourceBody, *(body for route in routes if (body := body_of(route)) is not None)}
    _, definitions = models_json_schema([(body, "validation") for body in bodies], ref_template=_REF)
    schema["components"] = {
        "schemas": {**definitions.get("$defs", {}), "Error": ERROR, "MessagesError": MESSAGES_ERROR},
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }
    for route in routes:
        for method in route.methods or ():
            if (operation := schema["paths"].get(route.path_format, {}).get(method.lower())) is not None:
                _complete(operation, method, route)
    return schema


def body_of(route: BaseRoute) -> type[Wire] | None:
    """The JSON body that a route takes."""
    if not isinstance(route, APIRoute):
        return None
    if (verb := route.path.rpartition("/")[2]) in _OPTIONAL:
        return _OPTIONAL[verb]
    hints = get_type_hints(route.endpoint).values()
    return next((hint for hint in hints if isinstance(hint, type) and issubclass(hint, Wire)), None)


def _complete(operation: dict[str, Any], method: str, route: APIRoute) -> None:
    """Add what FastAPI does not know of an operation."""
    body = body_of(route)
    if body is not None:
        content = {"application/json": {"schema": {"$ref": _REF.format(model=body.__name__)}}}
        operation["requestBody"] = {"required": body not in _OPTIONAL.values(), "content": content}
    elif route.path.startswith("/v1/adapters") and method in ("POST", "PUT"):
        source = {"$ref": _REF.format(model=SourceBody.__name__)}
        forms = {"multipart/form-data": {"schema": _UPLOAD}, "application/json": {"schema": source}}
        operation["requestBody"] = {"required": True, "content": forms}
    elif route.path == FILES_PATH and method == "POST":
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _FILE}}}
    elif PARTS_PATH.fullmatch(route.path) and method == "POST":
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _PART}}}
    operation["responses"] = _responses(method, route, streams=_streams(body, operation))
    operation.setdefault("parameters", []).extend(_headers(method, route))
    if not any(dependency.call is open_to_all for dependency in route.dependant.dependencies):
        operation["security"] = [{"key": []}, {}]  # whether a key is needed is the operator's choice


def _streams(body: type[Wire] | None, operation: dict[str, Any]) -> bool:
    asked = {parameter["name"] for parameter in operation.get("parameters", ())}
    return "stream" in asked or (body is not None and "stream" in body.model_fields)


def _responses(method: str, route: APIRoute, *, streams: bool) -> dict[str, Any]:
    """What a route answers."""
    key = method, route.path_format
    if key in PLAIN or key in BYTES:
        answers: dict[str, Any] = {"text/plain" if key in PLAIN else "application/octet-stream": {"schema": TEXT}}
    else:
        answers = {"application/json": {"schema": ANSWERS.get(key, {})}}
    if key in PERHAPS_BYTES:
        answers["application/octet-stream"] = {"schema": TEXT}
    if streams:
        answers["text/event-stream"] = {"schema": EVENT}
    name = "MessagesError" if route.path.startswith(MESSAGES_PATH) else "Error"
    error = {"application/json": {"schema": {"$ref": _REF.format(model=name)}}}
    told = {
        "2XX": {"description": "Done", "content": answers},
        "default": {"description": "An error", "content": error},
    }
    if method == "GET" and _is_guarded(route):
        told["304"] = {"description": "Nothing has changed since"}
    return told


def _is_guarded(route: APIRoute) -> bool:
    return any(dependency.call is read_guard for dependency in route.dependant.dependencies)


def _headers(method: str, route: APIRoute) -> list[dict[str, Any]]:
    """The headers that a route reads."""
    read = {"x-request-id": "the id that the answer and the log have; else one is made"}
    if method == "POST" and route.path in _GENERATING:
        read[TIMEOUT_HEADER] = "seconds that the request may take"
        read[SESSION_HEADER] = "what a request sticks to where versions share the requests of a name"
    if _is_guarded(route):
        read["If-None-Match"] = "* or ETags: an answer that has none of them, or a name that is not there"
        read["If-Match"] = "* or ETags: only if the name is still as it was then"
    return [
        {"name": name, "in": "header", "required": False, "description": text, "schema": TEXT}
        for name, text in read.items()
    ]


_STYLE = "body{font:15px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}td{padding:.1em 1em .1em 0}"


def docs_page(schema: dict[str, Any]) -> str:
    """The document as a page."""
    parts = [
        f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation.get('description', ''))}</p>"
        + _fields(schema, operation)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>hotswap</title><style>{_STYLE}</style>"
    intro = "<h1>hotswap</h1><p>Machines read <code>openapi.json</code>.</p>"
    return head + intro + "".join(parts) + "</html>"


def _fields(schema: dict[str, Any], operation: dict[str, Any]) -> str:
    cells = [
        f"<tr><td><code>{escape(name)}</code><td>{escape(type_of(field))}<td>{where}<td>{'required' if needed else ''}"
        for name, where, field, needed in fields_of(schema, operation)
    ]
    return f"<table>{''.join(cells)}</table>" if cells else ""


def fields_of(schema: dict[str, Any], operation: dict[str, Any]) -> list[tuple[str, str, dict[str, Any], bool]]:
    """Parameters and fields of the body: name, place, schema, whether it is required."""
    rows = [
        (item["name"], item["in"], item["schema"], bool(item.get("required")))
        for item in operation.get("parameters", ())
    ]
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        body = content["schema"]
        body = schema["components"]["schemas"][body["$ref"].rsplit("/", 1)[1]] if "$ref" in body else body
        required = body.get("required", ())
        rows += [(name, media, field, name in required) for name, field in body.get("properties", {}).items()]
    return rows


def type_of(field: dict[str, Any]) -> str:
    """What a field takes, in words."""
    if "$ref" in field:
        return str(field["$ref"]).rsplit("/", 1)[1].rsplit("__", 1)[-1]
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(type_of(option) for option in field["anyOf"]))
    if field.get("type") == "array":
        return f"list of {type_of(field.get('items', {}))}"
    values = field.get("enum") or ([field["const"]] if "const" in field else [])
    return " or ".join(map(str, values)) or str(field.get("type", "anything"))
