"""Packages of additive kinds that must be refused, in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.compiling import compile_package
from adapters.package.reading import read_package
from tests.adapters.kinds.changes import Change, change, drop, first, put, refusal_of, say
from tests.adapters.support import spec_of

Q, V = (f"base_model.model.model.layers.0.self_attn.{name}_proj" for name in "qv")
NORM_BIAS = "base_model.model.model.norm.bias"
EMBEDDING = "base_model.model.model.embed_tokens.hira_embedding_A"


def infinite(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for name in (f"{Q}.hira_A", f"{Q}.hira_B"):
        tensors[name] *= 1e30


REFUSED: dict[str, tuple[str, Change, str]] = {
    "fourierft: missing": ("fourierft", drop(f"{Q}.fourierft_spectrum"), "is missing: target_modules names"),
    "fourierft: shape": ("fourierft", say(n_frequency=39), "has shape [40], expected [39]; the length differs"),
    "fourierft: pattern": ("fourierft", say(n_frequency_pattern={"(": 3}), "is not a regular expression"),
    "fourierft: too many": ("fourierft", say(n_frequency=10**9), "exceeds the"),
    "fourierft: none": ("fourierft", say(n_frequency=0), "n_frequency is 0"),
    "fourierft: seed": ("fourierft", say(random_loc_seed=2**64), "random_loc_seed is 18446744073709551616"),
    "fourierft: no seed": ("fourierft", say(random_loc_seed=None), "random_loc_seed"),
    "fourierft: scale": ("fourierft", say(scaling=1e39), "is not finite"),
    "fourierft: bias": ("fourierft", say(bias="some"), "bias 'some' is unknown"),
    "fourierft: unknown": ("fourierft", put(f"{Q}.bias", torch.zeros(64)), "bias' is unknown"),
    "fourierft: integers": ("fourierft", change(f"{Q}.fourierft_spectrum", Tensor.int), "dtype 'I32'"),
    "fourierft: module": (
        "fourierft",
        put("base_model.model.model.layers.7.mlp.up_proj.fourierft_spectrum", torch.ones(40)),
        "made for a deeper one",
    ),
    "biases: size": ("fourierft-patterns", put(f"{Q}.base_layer.bias", torch.ones(63)), "expected [64]"),
    "biases: none there": ("fourierft-patterns", put(NORM_BIAS, torch.ones(64)), "has no bias"),
    "biases: twice": ("fourierft-patterns", put(f"{Q}.bias", torch.ones(64)), "two biases"),
    "shira: missing indices": ("shira", drop(f"{Q}.shira_indices"), "shira_indices' is missing"),
    "shira: missing weight": ("shira", drop(f"{Q}.shira_weight"), "shira_weight' is missing"),
    "shira: fewer indices": ("shira", change(f"{Q}.shira_indices", lambda t: t[:, 1:]), "a row and a column for every"),
    "shira: r": ("shira", say(r=5), "differs from what r says"),
    "shira: negative": ("shira", change(f"{Q}.shira_indices", first(-1)), "points outside of its module, [64, 64]"),
    "shira: beyond": ("shira", change(f"{Q}.shira_indices", first(64)), "points outside of its module"),
    "shira: far beyond": ("shira", change(f"{Q}.shira_indices", first(2**31 - 1)), "points outside of its module"),
    "shira: fractions": ("shira", change(f"{Q}.shira_indices", lambda t: t + 0.5), "no whole numbers"),
    "shira: huge": ("shira", change(f"{Q}.shira_indices", lambda t: t * 1e30), "no whole numbers"),
    "shira: integer weights": ("shira", change(f"{Q}.shira_weight", Tensor.int), "holds integers"),
    "shira: other integers": ("shira", change(f"{Q}.shira_indices", Tensor.long), "dtype 'I64'"),
    "c3a: size": ("c3a", say(block_size=8), "has shape [4, 8, 16], expected [8, 16, 8]"),
    "c3a: no divisor": ("c3a", say(block_size=7), "block_size 7 does not divide module"),
    "c3a: negative": ("c3a", say(block_size=-16), "block_size is -16"),
    "c3a: transposed": ("c3a", change(f"{V}.c3a_kernel", lambda t: t.transpose(0, 1)), "expected [2, 4, 16]"),
    "waveft: family": ("waveft", say(wavelet_family="db11"), "wavelet_family 'db11' is not served"),
    "waveft: proportional": ("waveft", say(proportional_parameters=True), "the length differs from what n_frequency"),
    "hira: rank": ("hira", say(r=5), "has shape [4, 128], expected [5, 128]"),
    "hira: partner": ("hira", drop(f"{Q}.hira_B"), "hira_B' is missing"),
    "hira: embedding": ("hira", put(EMBEDDING, torch.ones(4, 320)), "HiRA on an embedding, which is not served"),
    "hira: infinite": ("hira", infinite, "is not finite"),
    "glora: form": ("glora", say(config_A_B="vector"), "is unknown where adapter_config.json says config_A_B vector"),
    "glora: missing": ("glora", drop(f"{Q}.glora_C.Xd"), "glora_C.Xd' is missing"),
    "glora: unknown form": ("glora", say(config_C="constant"), "Invalid enum value"),
    "glora: extra": ("glora-vector", put(f"{Q}.glora_E.zeros", torch.zeros(64)), "is unknown where"),
    "glora: not zero": (
        "glora-none",
        change(f"{Q}.glora_A.zeros", lambda t: t + 1),
        "is not zero, although adapter_config.json says none",
    ),
    "osf: rank": ("osf", say(effective_rank=31), "expected [64, 33]; effective_rank leaves 33 of 64 directions"),
    "osf: no rank": ("osf", say(effective_rank=0), "effective_rank 0 is no number"),
    "osf: pattern": ("osf", say(rank_pattern={"[": 3}), "is not a regular expression"),
    "deft: rank": ("deft", say(r=5), "has shape [64, 4], expected [64, 5]"),
    "deft: para": ("deft", say(para=True), "with para there is deft_P alone"),
    "deft: no R": ("deft", drop(f"{Q}.deft_R"), "deft_R' is missing"),
    "deft: method": ("deft", say(decomposition_method="svd"), "Invalid enum value"),
    "peanut: depth": ("peanut-deep", say(depth=1), "peanut_decoders.1.weight' is unknown"),
    "peanut: too deep": ("peanut-deep", say(depth=3), "peanut_encoders.2.weight' is missing"),
    "peanut: depth beyond reason": ("peanut-deep", say(depth=10**9), "depth is 1000000000"),
    "peanut: activation": ("peanut", say(act_fn="xielu"), "act_fn 'xielu' is not served"),
    "peanut: infinite": ("peanut", say(scaling=1e39), "is not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_words(name: str, tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path) -> None:
    kind, how, words = REFUSED[name]
    assert words in refusal_of(tiny_base, tiny_adapters[kind], how, tmp_path)


def test_shira_of_windows_saves_its_indices_as_fractions(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    tensors = {n: t.float() for n, t in load_file(tiny_adapters["shira"] / "adapter_model.safetensors").items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((tiny_adapters["shira"] / "adapter_config.json").read_bytes())
    ours, theirs = (
        compile_package(read_package(path), spec_of(tiny_base)) for path in (tmp_path, tiny_adapters["shira"])
    )
    assert all(torch.equal(a, b) for a, b in zip(ours.tensors(), theirs.tensors(), strict=True))
