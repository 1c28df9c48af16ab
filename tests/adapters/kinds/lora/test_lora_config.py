"""Options of LoRA that are served, refused, or of no concern to what an adapter computes."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.errors import UnsupportedKindError
from adapters.kinds.lora.config import LoraConfig
from adapters.kinds.registry import parse_config
from tests.adapters.support import LORA_CONFIG

ON: dict[str, Any] = {
    "arrow_config": {"top_k": 1},
    "kasa_config": {"beta": 0.1},
    "layer_replication": [[0, 1]],
    "megatron_config": {"a": 1},
}


@pytest.mark.parametrize("key", sorted(LoraConfig.REFUSED.keys() - set(LoraConfig.__struct_fields__)))
def test_options_that_are_not_served_are_named(key: str) -> None:
    parse_config({**LORA_CONFIG, key: None})
    with pytest.raises(UnsupportedKindError, match=f"sets '{key}'"):
        parse_config({**LORA_CONFIG, key: ON[key]})


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "PiSSA"])
def test_inits_that_changed_the_base_are_refused(init: str) -> None:
    with pytest.raises(UnsupportedKindError, match="path_initial_model_for_weight_conversion"):
        parse_config({**LORA_CONFIG, "init_lora_weights": init})


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_inits_that_leave_the_base_alone_are_accepted(init: object) -> None:
    parse_config({**LORA_CONFIG, "init_lora_weights": init})


def test_semantics_ignore_what_training_alone_needs() -> None:
    plain = parse_config(LORA_CONFIG).semantics()
    assert parse_config({**LORA_CONFIG, "lora_dropout": 0.5, "revision": "x"}).semantics() == plain
    assert parse_config({**LORA_CONFIG, "lora_alpha": 9}).semantics() != plain
    assert parse_config({**LORA_CONFIG, "use_rslora": True}).semantics() != plain
    patterns = [
        parse_config({**LORA_CONFIG, "alpha_pattern": p}).semantics() for p in ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    ]
    assert patterns[0] != patterns[1]  # the first match counts
