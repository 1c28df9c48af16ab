"""Packages of kinds that share factors that must be refused, in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.adapters.kinds.changes import Change, change, drop, first, put, refusal_of, say

Q, K = (f"base_model.model.model.layers.0.self_attn.{name}_proj" for name in "qk")
ROLE = "self_attn_q_proj"


def boundless(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors[f"base_model.frod_V.{ROLE}"] *= 1e3
    tensors[f"{Q}.frod_lambda_l"].fill_(3e38)


REFUSED: dict[str, tuple[str, Change, str]] = {
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
