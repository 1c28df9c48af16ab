"""Kinds that add a matrix to a linear map's weight which is no product of trained factors."""

from __future__ import annotations

import torch
from peft import (
    C3AConfig,
    DeftConfig,
    FourierFTConfig,
    GloraConfig,
    HiraConfig,
    OSFConfig,
    PeanutConfig,
    ShiraConfig,
    WaveFTConfig,
)
from peft.tuners.supertuning import SupertuningConfig
from torch.nn import Parameter

from tests.kinds.case import CLM, Case, Fill

SOME = ["q_proj", "v_proj", "down_proj"]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def around(std: float) -> Fill:
    """Adds noise to what peft starts with: factors of the base's own weights, which zeros or noise would destroy."""

    def fill(name: str, parameter: Parameter) -> None:
        parameter.add_(torch.randn_like(parameter), alpha=std)

    return fill


CASES: dict[str, Case] = {
    "fourierft": Case(lambda: FourierFTConfig(n_frequency=40, scaling=20.0, target_modules=LINEAR, task_type=CLM), 1.0),
    "fourierft-patterns": Case(
        lambda: FourierFTConfig(
            n_frequency=900,
            n_frequency_pattern={"q_proj": 70, "1.mlp.down_proj": 5},
            random_loc_seed=5,
            scaling=5.0,
            bias="all",
            target_modules=SOME,
            task_type=CLM,
        ),
        0.5,
    ),
    "shira": Case(lambda: ShiraConfig(r=4, target_modules=LINEAR, task_type=CLM)),
    "shira-r1": Case(lambda: ShiraConfig(r=1, random_seed=3, target_modules=["o_proj"], task_type=CLM), 0.4),
    "c3a": Case(lambda: C3AConfig(block_size=16, target_modules=LINEAR, task_type=CLM), 1.0),
    "c3a-patterns": Case(
        lambda: C3AConfig(
            block_size=32,
            block_size_pattern={"v_proj": 4, "down_proj": 1},
            bias="c3a_only",
            target_modules=SOME,
            task_type=CLM,
        ),
        0.5,
    ),
    "waveft": Case(lambda: WaveFTConfig(n_frequency=60, scaling=2.0, target_modules=LINEAR, task_type=CLM), 0.3),
    "waveft-db4": Case(
        lambda: WaveFTConfig(
            n_frequency=300,
            n_frequency_pattern={"q_proj": 7},
            wavelet_family="db4",
            bias="waveft_only",
            scaling=1.0,
            target_modules=SOME,
            task_type=CLM,
        ),
        0.3,
    ),
    "waveft-coif2": Case(
        lambda: WaveFTConfig(
            n_frequency=80,
            wavelet_family="coif2",
            proportional_parameters=True,
            random_loc_seed=11,
            scaling=1.0,
            target_modules=LINEAR,
            task_type=CLM,
        ),
        0.3,
    ),
    "waveft-direct": Case(
        lambda: WaveFTConfig(n_frequency=90, use_idwt=False, scaling=2.0, target_modules=SOME, task_type=CLM), 0.2
    ),
    "hira": Case(lambda: HiraConfig(r=4, target_modules="all-linear", task_type=CLM), 0.4),
    "hira-patterns": Case(
        lambda: HiraConfig(r=4, rank_pattern={"layers.1.self_attn.q_proj": 7}, target_modules=SOME, task_type=CLM), 0.4
    ),
    "glora": Case(lambda: GloraConfig(r=3, target_modules=LINEAR, task_type=CLM)),
    "glora-vector": Case(
        lambda: GloraConfig(
            config_A_B="vector",
            config_C="vector",
            config_D_E="vector",
            bias="all",
            target_modules=LINEAR,
            task_type=CLM,
        )
    ),
    "glora-constant": Case(
        lambda: GloraConfig(
            config_A_B="constant", config_C="none", bias="glora_only", target_modules=SOME, task_type=CLM
        )
    ),
    "glora-none": Case(
        lambda: GloraConfig(config_A_B="none", config_C="vector", config_D_E="none", target_modules=SOME, task_type=CLM)
    ),
    "osf": Case(lambda: OSFConfig(target_modules="all-linear", task_type=CLM), fill=around(0.05)),
    "osf-patterns": Case(
        lambda: OSFConfig(
            effective_rank=0.9,
            rank_pattern={"v_proj": 30, "1.self_attn.q_proj": 61},
            target_modules=SOME,
            task_type=CLM,
        ),
        fill=around(0.05),
    ),
    "deft": Case(lambda: DeftConfig(r=4, target_modules="all-linear", task_type=CLM), fill=around(0.1)),
    "deft-qr": Case(
        lambda: DeftConfig(
            r=5, decomposition_method="qr", alpha=3, bias="deft_only", target_modules=SOME, task_type=CLM
        ),
        fill=around(0.05),
    ),
    "para": Case(lambda: DeftConfig(r=3, para=True, decomposition_method="qr", target_modules=SOME, task_type=CLM)),
    "peanut": Case(lambda: PeanutConfig(r=6, target_modules="all-linear", task_type=CLM), 0.2),
    "peanut-deep": Case(
        lambda: PeanutConfig(r=6, depth=2, act_fn="gelu_new", scaling=0.5, target_modules=SOME, task_type=CLM), 0.3
    ),
    "supertuning": Case(
        lambda: SupertuningConfig(target_modules=["v_proj", "down_proj"], sparsity=0.95, task_type=CLM)
    ),
    "supertuning-low-rank": Case(
        lambda: SupertuningConfig(target_modules=["q_proj"], sparsity=0.2, select_top=False, r=3, task_type=CLM)
    ),
}
