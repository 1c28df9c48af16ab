"""Kinds made of factors of their own: how they are divided, how much they weigh, and other bases."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
from peft import MissConfig
from peft.tuners.lokr.layer import factorization

from adapters.compiling import compile_package
from adapters.kinds.factors.lycoris import divided
from adapters.ops import Adapter, LowRank
from adapters.ops.products import Hadamard
from adapters.package.reading import read_package
from tests.adapters.kinds.against_peft import BASES, TOLERANCE, error
from tests.adapters.support import spec_of
from tests.factory import make_adapter, make_base
from tests.kinds.case import CLM
from tests.kinds.factors import stds


def compiled(path: Path, base: Path) -> Adapter:
    return compile_package(read_package(path), spec_of(base))


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
@pytest.mark.parametrize(
    "config",
    [
        peft.AdaLoraConfig(init_r=4, total_step=9),
        peft.GraloraConfig(r=4, alpha=8),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_other_architectures(config: Any, architecture: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", **BASES[architecture])
    config, names = (
        copy.deepcopy(config),
        {"gpt2": ["c_attn", "c_proj", "c_fc"], "opt": ["q_proj", "fc1", "fc2"]}[architecture],
    )
    config.target_modules, config.task_type = set(names), CLM
    config.fan_in_fan_out = architecture == "gpt2"
    assert error(base, make_adapter(base, tmp_path / "a", config, std=0.2)) < TOLERANCE


@pytest.mark.parametrize(
    "config",
    [
        peft.LoKrConfig(r=3),
        peft.DeloraConfig(r=3),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_the_output_head(config: Any, tmp_path: Path) -> None:
    base, config = make_base(tmp_path / "base", tie_word_embeddings=False), copy.deepcopy(config)
    config.target_modules, config.task_type = {"q_proj", "lm_head"}, CLM
    fill = stds(delora_lambda=1.0) if config.peft_type == "DELORA" else None
    assert error(base, make_adapter(base, tmp_path / "a", config, std=0.2, fill=fill)) < TOLERANCE


@pytest.mark.parametrize("factor", [-1, 0, 1, 2, 4, 7, 8, 16, 100, 5000])
def test_sides_are_divided_as_peft_divides_them(factor: int) -> None:
    for side in (1, 2, 7, 12, 64, 96, 127, 128, 144, 576, 1000, 4096, 11008):
        assert divided(side, factor) == factorization(side, factor)


def test_products_stay_factored_where_they_would_grow(tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> None:
    small, large = (compiled(tiny_adapters[name], tiny_base) for name in ("loha", "loha-of-higher-rank"))
    assert {type(op) for ops in small.ops.values() for op in ops} == {LowRank}
    assert {type(op) for ops in large.ops.values() for op in ops} == {Hadamard}
    assert all(tensor.is_contiguous() for tensor in small.tensors()), "native products read them in order"
    assert large.nbytes == read_package(tiny_adapters["loha-of-higher-rank"]).nbytes


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_miss_on_the_output_head(tiny_base: Path, tmp_path: Path) -> None:
    config = MissConfig(r=8, target_modules=["lm_head"], task_type=CLM)
    assert error(tiny_base, make_adapter(tiny_base, tmp_path / "a", config, std=0.05)) < TOLERANCE
