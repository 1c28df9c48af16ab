"""Packages of kinds made of factors of their own that must be refused, in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.adapters.kinds.changes import Change, change, drop, put, refusal_of, say

Q = "base_model.model.model.layers.0.self_attn.q_proj"
MASK = "model.layers.0.self_attn.q_proj.lora_E"


def masked(value: list[Any], name: str = MASK) -> Change:
    return lambda config, tensors: config["rank_pattern"].update({name: value})


def huge(*names: str) -> Change:
    return lambda config, tensors: [tensors[name].fill_(1e30) for name in names]


REFUSED: dict[str, tuple[str, Change, str]] = {
    "adalora: missing": ("adalora", drop(f"{Q}.lora_E"), "lora_E' is missing; others"),
    "adalora: module": ("adalora-kept", drop(f"{Q}.lora_A"), "lora_A' is missing; others"),
    "adalora: unknown": ("adalora", put(f"{Q}.ranknum", torch.ones(1)), "ranknum' is unknown"),
    "adalora: rank": ("adalora", say(init_r=5), "expected [5, 128]; its rank is what rank_pattern"),
    "adalora: values": ("adalora", change(f"{Q}.lora_E", lambda t: t[:, 0]), "has shape [6], expected [6, 1]"),
    "adalora: no rank": ("adalora", say(init_r=0), "init_r is 0"),
    "adalora: alpha": ("adalora", say(lora_alpha=1e41), "is not finite"),
    "adalora: mask": ("adalora-kept", masked([True] * 6), "expected [6, 64]"),
    "adalora: short mask": ("adalora-kept", masked([True] * 5), "has 5 entries; init_r is 6"),
    "adalora: numbers": ("adalora-kept", masked([1, 0, 1, 1, 0, 0]), "Expected `bool`, got `int`"),
    "adalora: mask of nothing": ("adalora-kept", masked([True] * 6, "model.x.lora_E"), "of which there are no tensors"),
    "adalora: pattern of lora": ("adalora", say(rank_pattern={"q_proj": 4}), "Expected `array`, got `int`"),
    "adalora: dora": ("adalora", say(use_dora=True), "magnitudes of DoRA on AdaLoRA"),
    "adalora: invocation": ("adalora", say(alora_invocation_tokens=[1]), "that wait for an invocation"),
    "loha: missing": ("loha", drop(f"{Q}.hada_w2_b"), "hada_w2_b' is missing"),
    "loha: rank": ("loha", say(r=4), "has shape [64, 3], expected [64, 4]"),
    "loha: convolution": ("loha", put(f"{Q}.hada_t1", torch.ones(3, 3, 1, 1)), "hada_t1' is unknown"),
    "loha: infinite": ("loha", say(alpha=1e41), "is not finite"),
    "loha: overflow": ("loha", huge(f"{Q}.hada_w1_a", f"{Q}.hada_w2_a"), "is not finite"),
    "loha: too large": ("loha-patterns", say(rank_pattern={"q_proj": 4096}), "is 4096; values from 1 to 1024"),
    "lokr: missing": ("lokr", drop(f"{Q}.lokr_w1"), "lokr_w1' is missing"),
    "lokr: one of two": ("lokr", drop(f"{Q}.lokr_w2_a"), "lokr_w2_a' is missing"),
    "lokr: both": ("lokr", put(f"{Q}.lokr_w2", torch.ones(8, 8)), "is saved in two factors here"),
    "lokr: whole": ("lokr-whole", say(r=2), "is saved in two factors here"),
    "lokr: not both": ("lokr-both", say(decompose_both=False), "lokr_w1 is saved whole here"),
    "lokr: factor": ("lokr-whole", say(decompose_factor=2), "expected [2, 2]"),
    "lokr: no rank": ("lokr", say(r=0), "must be at least 1"),
    "lokr: convolution": ("lokr", put(f"{Q}.lokr_t2", torch.ones(2, 2, 1, 1)), "lokr_t2' is unknown"),
    "lokr: alpha": ("lokr", say(alpha_pattern={"q_proj": 1e41}), "is not finite"),
    "gralora: missing": ("gralora", drop(f"{Q}.gralora_B"), "gralora_B' is missing"),
    "gralora: blocks": ("gralora", say(gralora_k=4), "has shape [2, 64, 4], expected [4, 32, 4]"),
    "gralora: no divisor": ("gralora", say(gralora_k=3), "gralora_k is 3, which must divide r 4"),
    "gralora: sides": ("gralora", say(gralora_k=3, r=3), "is not made of 3 times 3 blocks"),
    "gralora: hybrid": ("gralora", say(hybrid_r=2), "gralora_A_general.weight' is missing"),
    "gralora: no hybrid": ("gralora-hybrid", say(hybrid_r=0), "_general.weight' is unknown"),
    "gralora: negative": ("gralora", say(hybrid_r=-1), "cannot be negative"),
    "gralora: alpha": ("gralora", say(alpha=1e40), "is not finite"),
    "delora: missing": ("delora", drop(f"{Q}.delora_w_norm"), "delora_w_norm' is missing"),
    "delora: bound": ("delora", change(f"{Q}.delora_lambda", lambda t: t.expand(2)), "has shape [2], expected [1]"),
    "delora: rank": ("delora-patterns", say(rank_pattern={"q_proj": 3}), "has shape [2, 64], expected [3, 64]"),
    "delora: infinite": ("delora", huge(f"{Q}.delora_w_norm", f"{Q}.delora_A"), "is not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_words(name: str, tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path) -> None:
    kind, how, words = REFUSED[name]
    assert words in refusal_of(tiny_base, tiny_adapters[kind], how, tmp_path)
