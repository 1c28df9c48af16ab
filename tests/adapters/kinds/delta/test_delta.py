"""Additive kinds where peft differs from kind to kind: patterns, wavelets, activations, transposed weights, memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest

from adapters.compiling import compile_package
from adapters.errors import PackageError
from adapters.limits import PackageLimits
from adapters.package.reading import read_package
from tests.adapters.kinds.against_peft import BASES, TOLERANCE, error
from tests.adapters.support import spec_of
from tests.factory import make_adapter, make_base
from tests.kinds.case import CLM
from tests.kinds.delta import SOME, around


@pytest.mark.parametrize(
    "config",
    [
        peft.FourierFTConfig(n_frequency=50, scaling=20.0, fan_in_fan_out=True),
        peft.WaveFTConfig(n_frequency=50, wavelet_family="sym3", scaling=2.0, fan_in_fan_out=True),
        peft.WaveFTConfig(n_frequency=50, proportional_parameters=True, scaling=2.0, fan_in_fan_out=True),
        peft.HiraConfig(r=3, fan_in_fan_out=True),
        peft.DeftConfig(r=3, fan_in_fan_out=True),
    ],
    ids=["fourierft", "waveft", "waveft-proportional", "hira", "deft"],
)
def test_weights_stored_the_other_way_round(config: Any, tmp_path: Path) -> None:
    base = make_base(tmp_path / "gpt2", **BASES["gpt2"])
    config.target_modules, config.task_type = {"c_attn", "c_proj"}, CLM
    assert (
        error(base, make_adapter(base, tmp_path / "a", config, std=0.1 if config.peft_type == "DEFT" else 0.3))
        < TOLERANCE
    )


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize(
    "config",
    [
        # Patterns stand without brackets in these kinds, so that an alternative may match a part.
        peft.FourierFTConfig(n_frequency=50, n_frequency_pattern={"mlp|v_proj": 9, "q_proj": 8}),
        peft.FourierFTConfig(n_frequency=50, n_frequency_pattern={"model.layers.0.mlp.down_proj": 9, "proj": 7}),
        peft.C3AConfig(block_size=16, block_size_pattern={"nothing|v_proj": 8, r"\d+.mlp.down_proj": 4}),
        peft.WaveFTConfig(n_frequency=50, n_frequency_pattern={"nothing|v_proj": 8, r"layers.\d.mlp.down_proj": 4}),
        peft.OSFConfig(effective_rank=50, rank_pattern={"0.self": 0.95, "^model.*v_": 40}),
        peft.OSFConfig(effective_rank=1.0 - 1e-9, rank_pattern={"": 60}),
    ],
    ids=["fourierft", "fourierft-name", "c3a", "waveft", "osf", "osf-all"],
)
def test_patterns(config: Any, tiny_base: Path, tmp_path: Path) -> None:
    config.target_modules, config.task_type = set(SOME), CLM
    fill = around(0.05) if config.peft_type == "OSF" else None
    assert error(tiny_base, make_adapter(tiny_base, tmp_path / "a", config, std=0.3, fill=fill)) < TOLERANCE


@pytest.mark.parametrize("kind", ["hira", "glora", "osf", "waveft-coif2"])
def test_memory_is_refused_before_it_is_taken(kind: str, tiny_base: Path, tiny_adapters: Any) -> None:
    package, spec = read_package(tiny_adapters[kind]), spec_of(tiny_base)
    (needed,) = {sum(4 * out * in_ for n, (out, in_) in spec.linears.items() if n != "lm_head")}
    enough = replace(package, limits=PackageLimits(max_dense_bytes=needed))
    assert compile_package(enough, spec).nbytes >= needed
    spec = replace(spec, weight=lambda name: pytest.fail("a weight was read"))
    words = rf"take {needed} bytes in float32, the largest \('model.*{needed - 1} are allowed .*Adapt fewer modules"
    with pytest.raises(PackageError, match=words):
        compile_package(replace(package, limits=PackageLimits(max_dense_bytes=needed - 1)), spec)


def test_updates_by_frequency_weigh_what_they_hold(tiny_base: Path, tiny_adapters: Any) -> None:
    spec = spec_of(tiny_base)
    for kind in ("fourierft", "c3a", "shira", "waveft-direct"):
        package = read_package(tiny_adapters[kind])
        starts = sum(4 * (spec.linears[n][0] + 1) for n in compile_package(package, spec).ops)
        assert compile_package(package, spec).nbytes <= 2 * package.nbytes + starts
