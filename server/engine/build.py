"""Puts an engine together from its settings. Imports the model code, which takes seconds, only when called."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.config import EngineConfig
from server.engine.hosting import Steppable
from server.engine.messages import EngineInfo

if TYPE_CHECKING:
    from server.model.runner import ModelRunner


def build_engine(config: EngineConfig) -> tuple[Steppable, EngineInfo]:
    """Load the base and make an engine around it. Raises EngineStartError in plain words."""
    from server.engine.engine import Engine
    from server.model.runner import load_runner

    runner = load_runner(config)
    return Engine(runner, config), engine_info(runner)


def engine_info(runner: ModelRunner) -> EngineInfo:
    """What the API process is told about a loaded base."""
    return EngineInfo(
        base_fingerprint=runner.base_fingerprint,
        quantization=runner.quantization,
        dtype=runner.dtype,
        device=runner.device,
        base_bytes=runner.base_bytes,
        kv_bytes=runner.kv_bytes,
        num_kv_blocks=runner.num_blocks,
        block_size=runner.block_size,
        max_model_len=runner.max_model_len,
        vocab_size=runner.vocab_size,
        eos_token_ids=runner.eos_token_ids,
        is_encoder_decoder=bool(runner.start_ids),
    )
