"""Builds an engine and runs it on the calling thread: messages in through a queue, messages out through a callable.

The same in the engine's own process and in a thread of this one. Knows no transport; imports the model code, which
takes seconds, only when it builds.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from server.adapter_key import AdapterKey
from server.config import EngineConfig
from server.engine.messages import (
    Abort,
    EngineFailed,
    EngineInfo,
    EngineRequest,
    EngineStats,
    FromEngine,
    LoadAdapter,
    Shutdown,
    StepOutputs,
    ToEngine,
    UnloadAdapter,
)
from server.errors import EngineStartError, ServerError
from server.memory import give_back

if TYPE_CHECKING:
    from server.model.model_runner import ModelRunner


logger = logging.getLogger(__name__)
Inbox = queue.SimpleQueue[ToEngine]
Emit = Callable[[FromEngine], None]
_REST_SECONDS = 0.3  # longer than a client takes from one request to the next


class SteppableEngine(Protocol):
    """What is asked of an engine. All calls come from the thread that built it."""

    @property
    def passes(self) -> int:
        """Passes of the model so far: a long step is one that still gets on. Read from another thread."""

    @property
    def has_work(self) -> bool:
        """Whether ``step`` has anything to do, be it to wait a moment for an adapter that is being loaded."""

    def add_request(self, request: EngineRequest) -> None:
        """Take a request; its outputs come from ``step``."""

    def abort(self, request_id: str) -> None:
        """End a request; unknown ids are ignored."""

    def load_adapter(self, key: AdapterKey, path: Path, *others: Path, allow_noop: bool = False) -> None:
        """Begin to load; ``step`` returns AdapterLoaded or AdapterFailed."""

    def unload_adapter(self, key: AdapterKey, *, force: bool = False) -> None:
        """Begin to unload; ``step`` returns AdapterUnloaded."""

    def step(self) -> Sequence[FromEngine]:
        """Do one step; return what it produced."""

    def stats(self) -> EngineStats:
        """Gauges of this moment and totals."""

    def close(self) -> None:
        """Let go of threads."""


Build = Callable[[], tuple[SteppableEngine, EngineInfo]]


class Progress:
    """How far the stepping thread has come, for another thread to look at; each attribute is set in one assignment."""

    def __init__(self) -> None:
        self.engine: SteppableEngine | None = None
        self.steps = 0
        self.waiting = False

    @property
    def mark(self) -> int | None:
        """Grows with every step, and within a step with every pass of the model; None while there is nothing to do."""
        if self.engine is None or self.waiting:
            return None
        return self.steps + self.engine.passes


def run_engine(build: Build, inbox: Inbox, emit: Emit, progress: Progress | None = None) -> bool:
    """Build an engine, announce it and run it until told to shut down; ``progress`` is kept up to date.

    Whatever ends it otherwise is logged and emitted as EngineFailed; returns whether it ended as told.
    """
    try:
        engine, info = build()
        emit(info)
        with closing(engine):
            run_until_shutdown(engine, inbox, emit, progress or Progress())
    except EngineStartError as error:
        logger.error("the engine cannot start: %s", error)
        emit(EngineFailed(str(error)))
        return False
    except Exception as error:
        logger.exception("the engine ended")
        emit(EngineFailed(plain_reason(error)))
        return False
    return True


def run_until_shutdown(engine: SteppableEngine, inbox: Inbox, emit: Emit, progress: Progress) -> None:
    """Take messages and step until a Shutdown comes. Waits without spinning while there is nothing to do."""
    progress.engine = engine
    while _take_messages(engine, inbox, progress):
        messages = engine.step()
        progress.steps += 1
        for message in messages:
            emit(message)
        if messages and not any(isinstance(message, StepOutputs) for message in messages):
            emit(StepOutputs([], engine.stats()))  # adapters came or went: the statistics have changed


def plain_reason(error: BaseException) -> str:
    """An error as a sentence for the operator: ours speak for themselves, others are named."""
    if isinstance(error, (ServerError, ValueError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _take_messages(engine: SteppableEngine, inbox: Inbox, progress: Progress) -> bool:
    """Apply all queued messages, waiting for the first when idle; False on Shutdown."""
    wait = progress.waiting = not engine.has_work
    while True:
        try:
            message = _wait(inbox) if wait else inbox.get_nowait()
        except queue.Empty:
            return True
        progress.waiting = False
        if isinstance(message, Shutdown):
            return False
        _apply(engine, message)
        wait = False


def _wait(inbox: Inbox) -> ToEngine:
    """The next message. When none comes for a while, memory that steps took is given back meanwhile."""
    with suppress(queue.Empty):
        return inbox.get(timeout=_REST_SECONDS)
    give_back()
    return inbox.get()


def _apply(engine: SteppableEngine, message: EngineRequest | Abort | LoadAdapter | UnloadAdapter) -> None:
    match message:
        case EngineRequest():
            engine.add_request(message)
        case Abort():
            engine.abort(message.request_id)
        case LoadAdapter():
            paths = map(Path, (message.path, *message.others))
            engine.load_adapter(message.key, *paths, allow_noop=message.allow_noop)
        case UnloadAdapter():
            engine.unload_adapter(message.key, force=message.force)


def build_engine(config: EngineConfig) -> tuple[SteppableEngine, EngineInfo]:
    """Load the base and make an engine around it. Raises EngineStartError in plain words."""
    from server.engine.engine import Engine
    from server.model.model_runner import load_runner

    runner = load_runner(config)
    return Engine(runner, config), engine_info(runner)


def engine_info(runner: ModelRunner) -> EngineInfo:
    """What the API process is told about a loaded base."""
    return EngineInfo(
        base_fingerprint=runner.base_fingerprint,
        quantization=runner.quantization,
        dtype=runner.dtype,
        kernels=runner.kernels,
        device=runner.device,
        base_bytes=runner.base_bytes,
        kv_bytes=runner.kv_bytes,
        num_kv_blocks=runner.num_blocks,
        block_size=runner.block_size,
        max_model_len=runner.max_model_len,
        vocab_size=runner.vocab_size,
        eos_token_ids=runner.eos_token_ids,
        is_encoder_decoder=bool(runner.start_ids),
        hidden_size=runner.hidden_size,
        embedding_size=runner.embedding_size,
    )
