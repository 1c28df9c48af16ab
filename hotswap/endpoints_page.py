"""docs/endpoints.md, written from the code: every path with its parameters and fields, and what is refused by name.

``python -m hotswap.endpoints_page docs/endpoints.md`` writes it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from server.api.openapi import body_of, describe, fields_of, type_of
from server.app import ROUTERS

INTRO = """# Endpoints

Written from the code by `make endpoints`; `--docs` lets a server tell the same as `/openapi.json` and `/docs`. What a
field means that is not OpenAI's or Anthropic's is said in [serving.md](serving.md). Every path below `/v1` is served
without `/v1` too. A field that is not listed is ignored, unless it is refused.
"""


def page() -> str:
    """The page."""
    app = FastAPI()
    for router in ROUTERS:
        app.include_router(router)
    schema = describe(app, ROUTERS, "")
    parts = [INTRO]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parts.append("\n".join(_operation(schema, method, path, operation)))
    return "\n".join(parts) + "\n" + "\n".join(_refused())


def _operation(schema: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"## `{method.upper()} {path}`\n"
    if text := operation.get("description", "").strip():
        yield " ".join(text.split()) + "\n"
    if rows := fields_of(schema, operation):
        yield "| field | in | type |"
        yield "|---|---|---|"
        for name, where, field, needed in rows:
            kind = type_of(field).replace("|", "\\|")
            yield f"| `{name}`{' (required)' if needed else ''} | {where} | {kind} |"
        yield ""


def _refused() -> Iterator[str]:
    """What each body refuses by name, and why."""
    yield "## Refused by name\n"
    seen: dict[str, Mapping[str, str]] = {}
    for router in ROUTERS:
        for route in router.routes:
            body = body_of(route)
            if body is not None and body.unsupported:
                seen[getattr(route, "path", "")] = body.unsupported
    shared = set.intersection(*(set(reasons.items()) for reasons in seen.values())) if seen else set()
    yield from _table("Everywhere where a prompt is read", dict(shared))
    for path, reasons in seen.items():
        if own := dict(set(reasons.items()) - shared):
            yield from _table(f"`{path}`", own)


def _table(title: str, reasons: Mapping[str, str]) -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in sorted(reasons.items()):
        by_reason.setdefault(reason, []).append(f"`{name}`")
    yield f"### {title}\n"
    yield "| fields | why |"
    yield "|---|---|"
    for reason, names in sorted(by_reason.items()):
        yield f"| {', '.join(names)} | {reason.replace('|', chr(92) + '|')} |"
    yield ""


def main(path: str) -> None:
    """Write the page to ``path``."""
    Path(path).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
