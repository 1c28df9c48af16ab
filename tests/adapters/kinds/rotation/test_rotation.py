"""Kinds that rotate, in the forms that peft saves only sometimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import BOFTConfig, HRAConfig, OFTConfig, RoadConfig
from peft.tuners.boft import layer as boft_layer

from adapters.compiling import compile_package
from adapters.ops.low_rank import LowRankInput
from adapters.ops.rotation import RotateInput
from adapters.package.reading import read_package
from tests.adapters.kinds.against_peft import TOLERANCE, error
from tests.adapters.support import spec_of
from tests.factory import make_adapter
from tests.kinds.case import CLM
from tests.kinds.rotation import near_one


@pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor to 1:UserWarning")
def test_boft_without_pefts_extension_has_one_factor(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: None)
    config = BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=2, target_modules=["q_proj"], task_type=CLM)
    path = make_adapter(tiny_base, tmp_path / "a", config, fill=near_one)
    assert '"boft_n_butterfly_factor": 2' in (path / "adapter_config.json").read_text()
    assert error(tiny_base, path) < TOLERANCE


@pytest.mark.filterwarnings("ignore:Invalid `(r|oft_block_size)`:UserWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"r": 0, "oft_block_size": 12},  # 8 and 16 are as near
        {"r": 0, "oft_block_size": 30},
        {"r": 7, "oft_block_size": 0},
        {"r": 0, "oft_block_size": 500},
        {"r": 5, "oft_block_size": 0, "use_cayley_neumann": False},
        {"r": 24, "oft_block_size": 0, "num_cayley_neumann_terms": 2},
        {"r": 0, "oft_block_size": 6, "num_cayley_neumann_terms": 4, "block_share": True},
        {"r": 0, "oft_block_size": 8, "num_cayley_neumann_terms": 9, "layers_to_transform": [1]},
        {"r": 0, "oft_block_size": 8, "coft": True, "eps": 5.0, "exclude_modules": ["0.self_attn.q_proj"]},
    ],
)
def test_oft_options(options: dict[str, Any], tiny_base: Path, tmp_path: Path) -> None:
    config = OFTConfig(target_modules=["q_proj", "down_proj"], task_type=CLM, **options)
    assert error(tiny_base, make_adapter(tiny_base, tmp_path / "a", config)) < TOLERANCE


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
@pytest.mark.parametrize(
    "config",
    [
        OFTConfig(oft_block_size=8, target_modules=["lm_head"], task_type=CLM),
        OFTConfig(oft_block_size=8, target_modules=["embed_tokens", "lm_head"], task_type=CLM),
        HRAConfig(r=4, target_modules=["lm_head", "q_proj"], task_type=CLM),
        RoadConfig(group_size=32, target_modules=["lm_head"], task_type=CLM),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_the_output_head(config: Any, tiny_base: Path, tmp_path: Path) -> None:
    assert error(tiny_base, make_adapter(tiny_base, tmp_path / "a", config, std=0.05)) < TOLERANCE


def test_nearly_equal_reflections_give_a_small_update(tiny_base: Path, tmp_path: Path) -> None:
    """peft starts from pairs of equal columns; numbers of half precision must hold what little they differ."""

    def pairs(name: str, parameter: torch.nn.Parameter) -> None:
        half = torch.randn(len(parameter), parameter.shape[1] // 2)
        parameter.copy_(half.repeat_interleave(2, dim=1) + 1e-3 * torch.randn_like(parameter))

    config = HRAConfig(r=8, target_modules=["q_proj"], task_type=CLM)
    path = make_adapter(tiny_base, tmp_path / "a", config, fill=pairs)
    adapter = compile_package(read_package(path), spec_of(tiny_base))
    x = torch.randn(50, 64)
    for (op,) in adapter.ops.values():
        assert isinstance(op, LowRankInput)
        change = (x @ op.a) @ op.b
        half = (x.bfloat16() @ op.a.bfloat16()) @ op.b.bfloat16()
        assert change.norm() < 0.01 * x.norm()
        assert (half.float() - change).norm() < 0.02 * change.norm()


@pytest.mark.parametrize(
    ("options", "expected"), [((4, 3), [1]), ((8, 4), [1]), ((16, 4), [8, 4, 2, 1]), ((2, 5), [16, 8, 4, 2, 1])]
)
def test_butterflies_are_multiplied_out_where_that_is_light(
    options: tuple[int, int], expected: list[int], tiny_base: Path, tmp_path: Path
) -> None:
    size, factors = options
    config = BOFTConfig(
        boft_block_size=size, boft_n_butterfly_factor=factors, target_modules=["down_proj"], task_type=CLM
    )
    path = make_adapter(tiny_base, tmp_path / "a", config, fill=near_one)
    for ops in compile_package(read_package(path), spec_of(tiny_base)).ops.values():
        assert [op.fold for op in ops if isinstance(op, RotateInput)] == expected
    assert error(tiny_base, path) < TOLERANCE
