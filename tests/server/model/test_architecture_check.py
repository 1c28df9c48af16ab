"""Which architectures are refused by name, before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import BertConfig, Gemma3TextConfig, LlamaConfig, ModernBertConfig, Qwen2Config, RobertaConfig

from server.errors import EngineStartError
from server.model.architecture_check import check_architecture


@pytest.mark.parametrize("config", [BertConfig, RobertaConfig, ModernBertConfig])
def test_encoders_are_refused_with_what_to_serve_instead(config: Any) -> None:
    with pytest.raises(EngineStartError, match=r"is an encoder.*decoder-only base.*embedding"):
        check_architecture(config())


@pytest.mark.parametrize("config", [Qwen2Config(is_causal=False), Gemma3TextConfig(use_bidirectional_attention=True)])
def test_decoders_that_read_in_both_directions_are_refused(config: Any) -> None:
    with pytest.raises(EngineStartError, match="reads a text in both directions"):
        check_architecture(config)


def test_decoders_are_not() -> None:
    check_architecture(LlamaConfig())
    check_architecture(Gemma3TextConfig())
    check_architecture(BertConfig(is_decoder=True))
