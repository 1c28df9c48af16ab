"""Makes requests for tests of the engine's parts."""

from __future__ import annotations

from typing import Any

from server.adapter_key import AdapterKey
from server.engine.messages import EngineRequest, SamplingParams
from server.engine.request import Request


def make_request(
    request_id: str = "r",
    prompt_ids: list[int] | None = None,
    adapter: AdapterKey | None = None,
    *,
    arrival: int = 0,
    outputs: tuple[int, ...] = (),
    eos: tuple[int, ...] = (),
    num_virtual_tokens: int = 0,
    max_model_len: int = 1000,
    tenant: str = "",
    weight: float = 1.0,
    priority: int = 0,
    **params: Any,
) -> Request:
    """An attached request with ``outputs`` generated already."""
    sampling = SamplingParams(**{"max_tokens": 100, **params})
    message = EngineRequest(
        request_id=request_id,
        prompt_ids=prompt_ids or [1, 2, 3],
        sampling=sampling,
        adapter=adapter,
        tenant=tenant,
        weight=weight,
        priority=priority,
    )
    request = Request.make(message, arrival=arrival, eos_token_ids=eos)
    request.attach(num_virtual_tokens, max_model_len)
    for token in outputs:
        request.append(token)
    return request
