"""(IA)³ on other architectures, and on the output head."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import IA3Config

from tests.adapters.kinds.against_peft import BASES, TOLERANCE, error
from tests.factory import make_adapter, make_base
from tests.kinds.case import CLM, around_one


@pytest.fixture(scope="module", params=["gpt2", "opt", "qwen2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / request.param, **BASES[request.param])


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")
@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_ia3_with_the_architectures_own_modules(base: Path, fan_in_fan_out: bool, tmp_path: Path) -> None:
    config = IA3Config(fan_in_fan_out=fan_in_fan_out, task_type=CLM)  # peft adds target and feedforward modules
    assert error(base, make_adapter(base, tmp_path / "a", config, fill=around_one)) < TOLERANCE


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_the_output_head(tiny_base: Path, tmp_path: Path) -> None:
    config = IA3Config(target_modules=["lm_head"], feedforward_modules=[], task_type=CLM)
    assert error(tiny_base, make_adapter(tiny_base, tmp_path / "a", config, std=0.05, fill=around_one)) < TOLERANCE
