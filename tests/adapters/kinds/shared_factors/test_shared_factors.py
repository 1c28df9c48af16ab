"""Kinds whose modules share factors: what is drawn again, what is shared, how much it weighs, and other bases."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.frod.model import _category_from_key
from peft.tuners.randlora.model import RandLoraModel
from peft.tuners.unilora.model import UniLoraModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.compiling import compile_package
from adapters.errors import PackageError
from adapters.kinds.shared_factors import projections
from adapters.kinds.shared_factors.frod import role_of
from adapters.limits import PackageLimits
from adapters.ops import Adapter
from adapters.ops.low_rank import RandomBases, SharedLowRank
from adapters.ops.replace import ReplaceLinear
from adapters.package.reading import read_package
from tests.adapters.kinds.against_peft import BASES, TOLERANCE, error
from tests.adapters.support import load_model, spec_of
from tests.factory import make_adapter, make_base
from tests.kinds.case import CLM
from tests.kinds.shared_factors import near

DRAWN = ["vera-drawn", "pvera-drawn", "randlora-drawn", "randlora-sparse", "unilora", "vblora"]


def compiled(path: Path, base: Path, **limits: int) -> Adapter:
    package = read_package(path)
    return compile_package(replace(package, limits=PackageLimits(**limits)), spec_of(base))


# peft draws the projections of an embedding again too, and warns that they are missing.
@pytest.mark.filterwarnings("ignore:Found missing adapter keys while loading the checkpoint:UserWarning")
@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
@pytest.mark.parametrize(
    "config",
    [
        peft.VeraConfig(r=8, bias="all"),
        peft.VeraConfig(r=8, save_projection=False),
        peft.PveraConfig(r=8, save_projection=False),
        peft.RandLoraConfig(r=9, randlora_alpha=8),
        peft.RandLoraConfig(r=9, randlora_alpha=8, save_projection=False),
        peft.VBLoRAConfig(num_vectors=20, vector_length=16),
        peft.TinyLoraConfig(u=5, r=4, save_projection=False, weight_tying=0.3),
        peft.UniLoraConfig(r=2),
        peft.FrodConfig(progressbar=False),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_other_architectures(config: Any, architecture: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", **BASES[architecture])
    config, names = (
        copy.deepcopy(config),
        {"gpt2": ["c_attn", "c_proj", "c_fc"], "opt": ["q_proj", "fc1", "fc2"]}[architecture],
    )
    if config.peft_type == "TINYLORA":
        names.append("wte" if architecture == "gpt2" else "embed_tokens")
    config.target_modules, config.task_type = set(names), CLM
    config.fan_in_fan_out = architecture == "gpt2"
    fill = near(0.05) if config.peft_type == "FROD" else None
    assert error(base, make_adapter(base, tmp_path / "a", config, std=0.2, fill=fill)) < TOLERANCE


@pytest.mark.parametrize(
    "config",
    [
        peft.VeraConfig(r=8),
        peft.RandLoraConfig(r=8, randlora_alpha=1, save_projection=False),
        peft.UniLoraConfig(r=2),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_the_output_head(config: Any, tmp_path: Path) -> None:
    base, config = make_base(tmp_path / "base", tie_word_embeddings=False), copy.deepcopy(config)
    config.target_modules, config.task_type = {"q_proj", "lm_head"}, CLM
    assert error(base, make_adapter(base, tmp_path / "a", config, std=0.2)) < TOLERANCE


@pytest.mark.parametrize("name", ["vera-drawn", "pvera-drawn"])
def test_factors_are_drawn_as_peft_draws_them(name: str, tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> None:
    theirs = peft.PeftModel.from_pretrained(load_model(tiny_base), tiny_adapters[name]).base_model
    kind = name.removesuffix("-drawn")
    a, b = (getattr(theirs, f"{kind}_{which}")["default"] for which in "AB")
    for op, *_ in compiled(tiny_adapters[name], tiny_base).ops.values():
        if isinstance(op, SharedLowRank):
            assert torch.equal(op.a, a[: b.shape[1]].T)
            assert torch.equal(op.b, b.T)


@pytest.mark.parametrize(("count", "length"), [(10, 3), (5, 9), (9, 9), (1000, 256)])
def test_indices_are_drawn_as_peft_draws_them(count: int, length: int) -> None:
    found = projections.balanced_indices(count, length, 5)
    assert torch.equal(found, UniLoraModel.generate_index(count, length, 5))


@pytest.mark.parametrize("sparse", [False, True])
def test_bases_are_drawn_as_peft_draws_them(sparse: bool) -> None:
    theirs = RandLoraModel.__new__(RandLoraModel)
    torch.nn.Module.__init__(theirs)
    theirs._find_dim = lambda config: (30, 50)
    config = peft.RandLoraConfig(r=7, projection_prng_key=11)
    if sparse:
        theirs._init_randlora_A_randlora_B_sparse(config, "a")
        ours = projections.sparse_bases(30, 50, 7, 11, very=False)
    else:
        theirs._init_randlora_A_randlora_B(config, "a")
        ours = projections.uniform_bases(30, 50, 7, 11)
    assert torch.equal(ours[0], theirs.randlora_A["a"])
    assert torch.equal(ours[1], theirs.randlora_B["a"])


def test_roles_are_named_as_peft_names_them() -> None:
    names = ("lm_head", "h.3.attn", "model.layers.0.self_attn.q_proj", "layer.1.attention.output.dense", "output.dense")
    for name in names:
        assert role_of(name) == _category_from_key(name)


def shared(adapter: Adapter, kind: type[SharedLowRank] | type[RandomBases], field: str) -> set[int]:
    ops = [op for listed in adapter.ops.values() for op in listed if isinstance(op, kind)]
    assert len(ops) >= 4
    return {id(getattr(op, field)) for op in ops}


@pytest.mark.parametrize(
    ("name", "kind", "fields"),
    [
        ("vera", SharedLowRank, ("a", "b")),
        ("pvera", SharedLowRank, ("a", "b")),
        ("vera-drawn", SharedLowRank, ("a", "b")),
        ("randlora", RandomBases, ("a", "big")),
        ("randlora-drawn", RandomBases, ("a", "big")),
    ],
)
def test_modules_share_their_factors(
    name: str, kind: Any, fields: tuple[str, ...], tiny_base: Path, tiny_adapters: Mapping[str, Path]
) -> None:
    adapter = compiled(tiny_adapters[name], tiny_base)
    for field in fields:
        assert len(shared(adapter, kind, field)) == 1
        assert len(shared(adapter.map(Tensor.bfloat16), kind, field)) == 1


def test_a_vera_adapter_weighs_its_vectors_and_one_pair_of_factors(
    tiny_base: Path, tiny_adapters: Mapping[str, Path]
) -> None:
    package = read_package(tiny_adapters["vera"])
    assert compile_package(package, spec_of(tiny_base)).nbytes == package.nbytes


@pytest.mark.parametrize("name", DRAWN)
def test_memory_is_refused_before_it_is_taken(name: str, tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> None:
    with pytest.raises(PackageError, match=r"1000 are allowed \(max_dense_bytes\)"):
        compiled(tiny_adapters[name], tiny_base, max_dense_bytes=1000)


def test_a_basis_is_refused_before_weights_are_read(tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> None:
    package = replace(read_package(tiny_adapters["frod"]), limits=PackageLimits(max_dense_bytes=1000))
    spec = replace(spec_of(tiny_base), weight=lambda name: pytest.fail("a weight was read"))
    with pytest.raises(PackageError, match="1000 are allowed"):
        compile_package(package, spec)


def test_a_singular_basis_is_taken_as_peft_takes_it(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    tensors = load_file(tiny_adapters["frod"] / "adapter_model.safetensors")
    tensors["base_model.frod_V.self_attn_q_proj"][:, 5:] = 0
    (tmp_path / "adapter_config.json").write_bytes((tiny_adapters["frod"] / "adapter_config.json").read_bytes())
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (op,) = compiled(tmp_path, tiny_base).ops["model.layers.0.self_attn.q_proj"]
    assert isinstance(op, ReplaceLinear)
    assert torch.linalg.matrix_rank(op.weight) == 5
