"""LN tuning on other architectures, and of modules that are no norms."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LNTuningConfig

from tests.adapters.kinds.against_peft import BASES, TOLERANCE, error
from tests.factory import make_adapter, make_base
from tests.kinds.case import CLM, around_one


@pytest.fixture(scope="module", params=["gpt2", "opt", "qwen2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / request.param, **BASES[request.param])


def test_norms_with_biases(base: Path, tmp_path: Path) -> None:
    modules = {"gpt2": ["ln_1", "ln_f"], "opt": ["self_attn_layer_norm", "final_layer_norm"], "qwen2": None}[base.name]
    config = LNTuningConfig(target_modules=modules, task_type=CLM)
    assert error(base, make_adapter(base, tmp_path / "a", config, fill=around_one)) < TOLERANCE


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
@pytest.mark.parametrize("module", ["c_proj", "c_fc", "wte", "lm_head"])
def test_ln_tuning_of_modules_that_are_no_norms(module: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "gpt2", **BASES["gpt2"])  # whose linear maps are stored the other way round
    config = LNTuningConfig(target_modules=[module], task_type=CLM)
    assert error(base, make_adapter(base, tmp_path / "a", config, std=0.1)) < TOLERANCE
