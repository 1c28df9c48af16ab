"""Packages of kinds made of factors that must be refused, in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.adapters.kinds.changes import Change, change, drop, first, put, refusal_of, say

Q, K, V = (f"base_model.model.model.layers.0.self_attn.{name}_proj" for name in "qkv")
UP, DOWN = (f"base_model.model.model.layers.0.mlp.{name}_proj" for name in ("up", "down"))
MASK = "model.layers.0.self_attn.q_proj.lora_E"
ROLE = "self_attn_q_proj"


def masked(value: list[Any], name: str = MASK) -> Change:
    return lambda config, tensors: config["rank_pattern"].update({name: value})


def huge(*names: str) -> Change:
    return lambda config, tensors: [tensors[name].fill_(1e30) for name in names]


def boundless(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors[f"base_model.frod_V.{ROLE}"] *= 1e3
    tensors[f"{Q}.frod_lambda_l"].fill_(3e38)


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
    "vera: no vector": ("vera", drop(f"{K}.vera_lambda_d"), "vera_lambda_d' is missing"),
    "vera: no factor": ("vera", drop("base_model.vera_A"), "base_model.vera_A' is missing; adapter_config.json says"),
    "vera: not said": ("vera", say(save_projection=False), "vera_A' is not expected: adapter_config.json says that it"),
    "vera: small": ("vera", change("base_model.vera_A", lambda t: t[:, :99]), "need at least [8, 128]"),
    "vera: small B": ("vera", change("base_model.vera_B", lambda t: t[:99]), "need at least [128, 8]"),
    "vera: rank": ("vera", say(r=7), "base_model.vera_A' has shape [8, 128], expected [7, 128]"),
    "vera: dimensions": ("vera", change("base_model.vera_A", torch.flatten), "has 1 dimensions, expected 2"),
    "vera: another": ("vera", put("base_model.vera_C", torch.ones(1)), "vera_C' is not expected: vera shares"),
    "vera: of a module": ("vera", put(f"{Q}.vera_A", torch.ones(8, 64)), "vera_A' is unknown"),
    "vera: vector": ("vera", change(f"{K}.vera_lambda_b", lambda t: t[:9]), "has shape [9], expected [32]"),
    "vera: drawn rank": ("vera-drawn", say(r=15), "has shape [16], expected [15]"),
    "vera: seed": ("vera-drawn", say(projection_prng_key=2**64), "projection_prng_key is 18446744073709551616"),
    "vera: too large": ("vera-drawn", say(r=10**9), "r is 1000000000; values from 1 to 1024"),
    "vera: integers": ("vera", change(f"{K}.vera_lambda_b", Tensor.int), "dtype 'I32'"),
    "pvera: sampled": ("pvera", say(sample_at_inference=True), "that draw their update anew at every call"),
    "pvera: as vera": ("pvera", change("base_model.pvera_A", lambda t: t[:8]), "expected [16, 128]"),
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
    "randlora: missing": ("randlora", drop(f"{Q}.randlora_gamma"), "randlora_gamma' is missing"),
    "randlora: no basis": ("randlora", drop("base_model.randlora_B"), "randlora_B' is missing; adapter_config"),
    "randlora: copies": ("randlora", change(f"{Q}.randlora_A", lambda t: t + 1), "differs from base_model.randlora_A"),
    "randlora: small": ("randlora", change("base_model.randlora_A", lambda t: t[..., :60]), "differs from base_model"),
    "randlora: rank": ("randlora", say(r=9), "expected [9, 1, 128]"),
    "randlora: not said": ("randlora", say(save_projection=False), "randlora_A' is not expected"),
    "randlora: copies unsaid": (
        "randlora-drawn",
        put(f"{Q}.randlora_A", torch.ones(7, 1, 64)),
        "randlora_A' is not expected: adapter_config.json says",
    ),
    "randlora: drawn rank": ("randlora-drawn", say(r=8), "has shape [7, 10], expected [8, 8]"),
    "randlora: alpha": ("randlora", say(randlora_alpha=1e41), "is not finite"),
    "vblora: no bank": ("vblora", drop("base_model.vblora_vector_bank"), "vblora_vector_bank' is missing"),
    "vblora: bank": ("vblora", say(num_vectors=21), "has shape [20, 16], expected [21, 16]"),
    "vblora: length": ("vblora", say(vector_length=48), "has shape [20, 16], expected [20, 48]"),
    "vblora: no divisor": (
        "vblora",
        lambda config, tensors: (
            config.update(vector_length=48),
            tensors.update({"base_model.vblora_vector_bank": torch.ones(20, 48)}),
        ),
        "no multiple of vector_length 48",
    ),
    "vblora: topk": ("vblora", say(topk=21), "topk is 21; values from 1 to num_vectors 20"),
    "vblora: no topk": ("vblora", say(topk=0), "topk is 0"),
    "vblora: rank": ("vblora", say(r=5), "has shape [4, 8, 20], expected [5, 8, 20]"),
    "vblora: form": ("vblora", say(save_only_topk_weights=True), "vblora_logits_A' is unknown"),
    "vblora: other form": ("vblora-topk", say(save_only_topk_weights=False), "_topk_indices' is unknown"),
    "vblora: index": (
        "vblora-topk",
        change(f"{Q}.vblora_logits_A_topk_indices", first(300)),
        "holds an index outside of 0 .. 299",
    ),
    "vblora: negative": ("vblora-topk", change(f"{Q}.vblora_logits_A_topk_indices", first(-1)), "outside of 0 .. 299"),
    "vblora: twice": (
        "vblora-topk",
        change(f"{Q}.vblora_logits_A_topk_indices", torch.zeros_like),
        "names a vector twice for one piece",
    ),
    "vblora: fractions": ("vblora-topk", change(f"{Q}.vblora_logits_B_topk_indices", Tensor.float), "with a fraction"),
    "vblora: weights": ("vblora-topk", change(f"{Q}.vblora_logits_B_topk_weights", Tensor.neg), "add up to one"),
    "vblora: heavy": ("vblora-topk", change(f"{Q}.vblora_logits_B_topk_weights", lambda t: t + 1), "add up to one"),
    "vblora: integers": ("vblora", change(f"{Q}.vblora_logits_B", Tensor.int), "holds integers"),
    "tinylora: no vector": ("tinylora", drop("base_model.tinylora_v.1"), "tinylora_v.1' is missing"),
    "tinylora: another": ("tinylora", put("base_model.tinylora_v.9", torch.ones(5)), "leave no group of this number"),
    "tinylora: tying": ("tinylora", say(weight_tying=1), "leave no group of this number"),
    "tinylora: beyond": ("tinylora", say(weight_tying=1.5), "lies between 0 and 1"),
    "tinylora: length": ("tinylora", say(u=6), "tinylora_v.0' has shape [5], expected [6]"),
    "tinylora: no length": ("tinylora", say(u=0), "u is 0"),
    "tinylora: missing": ("tinylora", drop(f"{Q}.tinylora_P"), "tinylora_P' is missing"),
    "tinylora: unsaid": ("tinylora", say(save_projection=False), "tinylora_P' is unknown"),
    "tinylora: rank": ("tinylora", say(r=3), "has shape [5, 2, 2], expected [5, 3, 3]"),
    "tinylora: drawn rank": ("tinylora-drawn", say(r=3), "has shape [40, 64], expected [3, 64]"),
    "tinylora: seed": ("tinylora-drawn", say(projection_seed=-(2**63) - 1), "is no seed of 64 bits"),
    "tinylora: too large": (
        "tinylora-drawn",
        lambda config, tensors: (
            config.update(u=10**6),
            tensors.update({name: torch.ones(10**6) for name in tensors if "tinylora_v" in name}),
        ),
        "are allowed (max_dense_bytes)",
    ),
    "unilora: no vector": ("unilora-saved", drop("base_model.unilora_theta_d"), "unilora_theta_d' is missing"),
    "unilora: length": ("unilora", say(theta_d_length=99), "has shape [100], expected [99]"),
    "unilora: no length": ("unilora", say(theta_d_length=0), "theta_d_length is 0"),
    "unilora: unsaid": ("unilora-saved", say(save_indices=False), "adapter_config.json says that indices were not"),
    "unilora: no targets": ("unilora", say(target_modules="all-linear"), "does not name its target_modules"),
    "unilora: other targets": ("unilora", say(target_modules=["c_attn"]), "matches no linear map"),
    "unilora: one other target": ("unilora", say(target_modules=["q_proj", "c_attn"]), "names 'c_attn', which matches"),
    "unilora: unknown": ("unilora", put(f"{Q}.unilora_scales_A", torch.ones(4, 64)), "indices were not saved"),
    "unilora: seed": ("unilora", say(proj_seed=-1), "proj_seed is -1"),
    "unilora: index": ("unilora-saved", change(f"{Q}.unilora_indices_A", first(256)), "outside of 0 .. 255"),
    "unilora: scales": ("unilora-saved", drop(f"{Q}.unilora_scales_B"), "unilora_scales_B' is missing"),
    "unilora: rank": ("unilora-saved", say(r=3), "has shape [2, 128], expected [3, 128]"),
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
    "frod: not saved": ("frod", say(save_projection=False), "save it again with save_projection=True"),
    "frod: no basis": ("frod", drop(f"base_model.frod_V.{ROLE}"), f"frod_V.{ROLE}' is missing"),
    "frod: basis": ("frod", change(f"base_model.frod_V.{ROLE}", lambda t: t[1:]), "[63, 64], expected [64, 64]"),
    "frod: size": ("frod", change(f"base_model.frod_s_size.{ROLE}", first(63)), "says [63, 64], and the basis has 64"),
    "frod: places": ("frod", change(f"base_model.frod_s_indices.{ROLE}", first(64)), "outside of 0 .. 63"),
    "frod: entries": ("frod", change(f"{Q}.frod_lambda_s_values", lambda t: t[1:]), "expected [409]"),
    "frod: diagonal": ("frod", drop(f"{Q}.frod_lambda_l"), "frod_lambda_l' is missing"),
    "frod: another role": ("frod", put("base_model.frod_V.lm_head", torch.ones(64, 64)), "no adapted module has this"),
    "frod: infinite": ("frod", boundless, "is not finite"),
    "frod: integers": ("frod", change(f"{Q}.frod_lambda_l", Tensor.long), "holds integers"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_words(name: str, tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path) -> None:
    kind, how, words = REFUSED[name]
    assert words in refusal_of(tiny_base, tiny_adapters[kind], how, tmp_path)
