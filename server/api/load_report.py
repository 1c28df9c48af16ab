"""How loaded the server is, in a header of answers, for load balancers that weigh servers by it.

The header and its formats are ORCA's (Open Request Cost Aggregation), as Envoy and gateways made for inference read it.
"""

from __future__ import annotations

import json

from fastapi import Request

from server.api.auth import caller_of
from server.api.context import ServerContext

WANTED = "endpoint-load-metrics-format"
HEADER = "endpoint-load-metrics"


def load_report(request: Request, context: ServerContext) -> dict[str, str]:
    """The header, in the format that ``request`` names; empty where it names none, or none that is known.

    It tells of others' requests, as /metrics does, so whoever may not read that is told nothing.
    """
    wanted = request.headers.get(WANTED, "").strip().upper()
    if not wanted or not (context.config.public_metrics or caller_of(request).reads_metrics):
        return {}
    stats = context.engine.stats
    used = stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
    metrics = {
        "kv_cache_usage_perc": round(used, 6),
        "num_requests_running": stats.num_running,
        "num_requests_waiting": stats.num_waiting,
    }
    match wanted:
        case "JSON":
            return {HEADER: f"JSON {json.dumps({'named_metrics': metrics})}"}
        case "TEXT":
            return {HEADER: "TEXT " + ",".join(f"named_metrics.{name}={value}" for name, value in metrics.items())}
    return {}
