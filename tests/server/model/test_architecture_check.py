"""Which architectures are refused by name, before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import BertConfig, LlamaConfig, ModernBertConfig, RobertaConfig

from server.errors import EngineStartError
from server.model.architecture_check import check_architecture


@pytest.mark.parametrize("config", [BertConfig, RobertaConfig, ModernBertConfig])
def test_encoders_are_refused_with_what_to_serve_instead(config: Any) -> None:
    with pytest.raises(EngineStartError, match=r"is an encoder.*decoder-only base.*embedding"):
        check_architecture(config())


def test_decoders_are_not() -> None:
    check_architecture(LlamaConfig())
    check_architecture(BertConfig(is_decoder=True))
