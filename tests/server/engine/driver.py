"""The whole engine stepped by hand, every token it gives held against peft running that request alone."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.adapter_key import AdapterKey
from server.config import EngineConfig
from server.engine.engine import Engine
from server.engine.messages import (
    AdapterFailed,
    AdapterLoaded,
    EngineRequest,
    FinishReason,
    FromEngine,
    RequestOutput,
    SamplingParams,
    StepOutputs,
)
from server.model.model_runner import load_runner
from tests import oracle
from tests.bounds import LOGITS
from tests.factory import VOCAB_SIZE
from tests.server.keys import key_of

TOLERANCE = LOGITS


class Driver:
    """An engine stepped by hand that collects what every request was sent.

    Its clock moves by a millisecond whenever it is read, so that what runs side by side is the same on every machine.
    """

    def __init__(self, base: Path, **settings: object) -> None:
        options = {"quantize": "none", "kv_cache_gb": 0.02, "block_size": 4, "max_num_batched_tokens": 24, **settings}
        config = EngineConfig(model=str(base), dtype="float32", threads=1, **options)  # type: ignore[arg-type]
        self.base = base
        ticks = itertools.count()
        self.engine = Engine(load_runner(config), config, clock=lambda: next(ticks) * 1e-3)
        self.paths: dict[AdapterKey, Path] = {}
        self.outputs: dict[str, list[RequestOutput]] = {}
        self.events: list[FromEngine] = []
        self.cached: dict[str, int] = {}

    def load(self, name: str, path: Path, version: int = 1) -> AdapterKey:
        self.engine.load_adapter(key_of(name, path, version), path)
        return self.wait_for(name, path, version)

    def wait_for(self, name: str, path: Path, version: int = 1) -> AdapterKey:
        key = key_of(name, path, version)
        deadline = time.monotonic() + 60
        while not any(isinstance(e, AdapterLoaded) and e.key == key for e in self.events):
            assert time.monotonic() < deadline, f"{key} was not loaded: {self.events}"
            self.step()
        self.paths[key] = path
        return key

    def submit(self, name: str, prompt: list[int], key: AdapterKey | None, count: int = 8, **params: Any) -> None:
        defaults: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, "logprobs": VOCAB_SIZE}
        sampling = SamplingParams(max_tokens=count, **{**defaults, **params})
        self.outputs[name] = []
        self.engine.add_request(EngineRequest(request_id=name, prompt_ids=prompt, sampling=sampling, adapter=key))

    def step(self) -> None:
        for message in self.engine.step():
            self.events.append(message)
            if isinstance(message, StepOutputs):
                for output in message.outputs:
                    self.outputs[output.request_id].append(output)
        assert not any(isinstance(e, AdapterFailed) for e in self.events)

    def run(self) -> None:
        for _ in range(2000):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError("the engine did not finish")

    def tokens(self, name: str) -> list[int]:
        return [t for o in self.outputs[name] for t in o.token_ids]

    def want(self, prompt: list[int], tokens: list[int], path: Path | None) -> Tensor:
        """The oracle's logits where ``tokens`` were chosen. Shape: [len(tokens), vocab_size]."""
        return oracle.logits(self.base, path, prompt + tokens[:-1])[-len(tokens) :]

    def check(self, name: str, prompt: list[int], path: Path | None, count: int = 8) -> None:
        """Every token's log-probabilities over the whole vocabulary against the oracle."""
        tokens = self.tokens(name)
        assert len(tokens) == count
        assert [o.finish_reason for o in self.outputs[name] if o.finish_reason] == [FinishReason.LENGTH]
        want = self.want(prompt, tokens, path).log_softmax(-1)
        got = torch.full((count, VOCAB_SIZE), float("nan"))
        for i, entry in enumerate(e for o in self.outputs[name] for e in o.logprobs or []):
            ids, values = zip(*entry.top, strict=True)
            got[i, list(ids)] = torch.tensor(values)
        torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE)
        assert tokens == want.argmax(-1).tolist()


def prompt_of(seed: int, length: int) -> list[int]:
    tokens: list[int] = torch.randint(0, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return tokens
