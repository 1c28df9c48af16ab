"""Drives an engine in tests and keeps what it says, checking the rules that hold for every run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from server.adapter_key import AdapterKey
from server.config import EngineConfig
from server.engine.engine import Engine
from server.engine.executor import Runner
from server.engine.messages import (
    AdapterFailed,
    AdapterLoaded,
    AdapterUnloaded,
    EngineRequest,
    FinishReason,
    FromEngine,
    PoolingParams,
    RequestOutput,
    SamplingParams,
    StepOutputs,
    TokenLogprobs,
)

DEADLINE = 30.0  # seconds


@dataclass
class Result:
    """Everything the engine said about one request."""

    outputs: list[RequestOutput] = field(default_factory=list)

    @property
    def token_ids(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.outputs[-1].finish_reason if self.outputs else None

    @property
    def error(self) -> str | None:
        return self.outputs[-1].error

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        return [entry for output in self.outputs for entry in output.logprobs or []]

    @property
    def pooled(self) -> Tensor:
        """All numbers of the pooled output, in one row."""
        return torch.tensor(np.frombuffer(b"".join(output.pooled for output in self.outputs), "<f4"))

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs | None]:
        return [entry for output in self.outputs for entry in output.prompt_logprobs or []]


class Harness:
    """An engine and what it has said so far."""

    def __init__(self, runner: Runner, **config: Any) -> None:
        self.engine = Engine(runner, EngineConfig(model="toy", **config))
        self.results: dict[str, Result] = {}
        self.events: list[FromEngine] = []

    def submit(
        self,
        request_id: str,
        prompt_ids: list[int],
        adapter: AdapterKey | None = None,
        *,
        salt: str = "",
        pooling: PoolingParams | None = None,
        **params: Any,
    ) -> None:
        """Add a request; greedy, four tokens and no stop unless ``params`` say otherwise."""
        sampling = SamplingParams(**{"max_tokens": 4, "temperature": 0.0, "ignore_eos": True, **params})
        self.results[request_id] = Result()
        self.engine.add_request(
            EngineRequest(
                request_id=request_id,
                prompt_ids=prompt_ids,
                sampling=sampling,
                adapter=adapter,
                cache_salt=salt,
                pooling=pooling,
            )
        )

    def step(self) -> None:
        """One step; everything must be consistent after it."""
        for message in self.engine.step():
            if isinstance(message, StepOutputs):
                for output in message.outputs:
                    result = self.results[output.request_id]
                    assert result.finish_reason is None, "nothing follows a terminal output"
                    assert (output.error is not None) == (output.finish_reason is FinishReason.ERROR)
                    if result.token_ids or not (output.token_ids or output.finish_reason):
                        assert (output.cached_tokens, output.queued_seconds) == (0, 0), "told with the first token only"
                    result.outputs.append(output)
            else:
                self.events.append(message)
        self.engine.check_integrity()

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Step until ``condition`` holds."""
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, "the engine did not get there in time"
            assert self.engine.has_work, "the engine has nothing left to do"
            self.step()

    def run(self) -> dict[str, Result]:
        """Step until nothing is left to do; every request must have ended."""
        self.run_until(lambda: not self.engine.has_work)
        assert all(result.finish_reason is not None for result in self.results.values())
        assert self.engine.stats().num_running == self.engine.stats().num_waiting == 0
        return self.results

    def load(self, key: AdapterKey, path: Path) -> AdapterLoaded | AdapterFailed:
        """Load an adapter and wait for the answer."""
        self.engine.load_adapter(key, path)
        return self.wait_loaded(key)

    def wait_loaded(self, key: AdapterKey) -> AdapterLoaded | AdapterFailed:
        """Step until a load is answered."""

        def answers() -> list[AdapterLoaded | AdapterFailed]:
            return [e for e in self.events if isinstance(e, (AdapterLoaded, AdapterFailed)) and e.key == key]

        self.run_until(lambda: bool(answers()))
        return answers()[-1]

    @property
    def unloaded(self) -> list[AdapterKey]:
        """Adapters that are gone."""
        return [event.key for event in self.events if isinstance(event, AdapterUnloaded)]
