"""A strict reader of peft's ``adapter_config.json``: every key is understood, known to be harmless, or refused.

Written against what peft 0.21 saves. Knows no tensors and imports no torch, so that the API process may use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.configs.common import CommonConfig
from adapters.configs.delta import (
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
from adapters.configs.factors import AdaLoraConfig, DeloraConfig, GraloraConfig, LoHaConfig, LoKrConfig
from adapters.configs.factors_shared import (
    FrodConfig,
    PveraConfig,
    RandLoraConfig,
    TinyLoraConfig,
    UniLoraConfig,
    VBLoraConfig,
    VeraConfig,
)
from adapters.configs.lora import LoraConfig
from adapters.configs.miss import MissConfig
from adapters.configs.prompt import (
    CartridgeConfig,
    CPTConfig,
    MultitaskPromptTuningConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from adapters.configs.refused import REFUSED
from adapters.configs.rotation import BOFTConfig, HRAConfig, OFTConfig, RoadConfig
from adapters.configs.scale import BeftConfig, IA3Config, LnTuningConfig
from adapters.configs.supertuning import SupertuningConfig
from adapters.configs.tokens import TrainableTokensConfig
from adapters.configs.whole import BottleneckConfig, FreezeConfig
from adapters.errors import PackageError, UnsupportedKindError
from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.names import shown
from adapters.strictjson import read_object

CONFIG_FILE = "adapter_config.json"

AdapterConfig = CommonConfig

CONFIGS: Mapping[str, type[AdapterConfig]] = {
    "LORA": LoraConfig,
    "FOURIERFT": FourierFTConfig,
    "SHIRA": ShiraConfig,
    "C3A": C3AConfig,
    "WAVEFT": WaveFTConfig,
    "HIRA": HiraConfig,
    "GLORA": GloraConfig,
    "OSF": OSFConfig,
    "DEFT": DeftConfig,
    "PEANUT": PeanutConfig,
    "PREFIX_TUNING": PrefixTuningConfig,
    "PROMPT_TUNING": PromptTuningConfig,
    "P_TUNING": PromptEncoderConfig,
    "MULTITASK_PROMPT_TUNING": MultitaskPromptTuningConfig,
    "CPT": CPTConfig,
    "CARTRIDGE": CartridgeConfig,
    "TRAINABLE_TOKENS": TrainableTokensConfig,
    "IA3": IA3Config,
    "LN_TUNING": LnTuningConfig,
    "BEFT": BeftConfig,
    "OFT": OFTConfig,
    "BOFT": BOFTConfig,
    "HRA": HRAConfig,
    "ROAD": RoadConfig,
    "MISS": MissConfig,
    "SUPERTUNING": SupertuningConfig,
    "ADALORA": AdaLoraConfig,
    "VERA": VeraConfig,
    "PVERA": PveraConfig,
    "LOHA": LoHaConfig,
    "LOKR": LoKrConfig,
    "RANDLORA": RandLoraConfig,
    "VBLORA": VBLoraConfig,
    "TINYLORA": TinyLoraConfig,
    "UNILORA": UniLoraConfig,
    "GRALORA": GraloraConfig,
    "DELORA": DeloraConfig,
    "FROD": FrodConfig,
    "BOTTLENECK": BottleneckConfig,
    "FREEZE": FreezeConfig,
}


def read_config(directory: Path, limits: PackageLimits = DEFAULT_LIMITS) -> AdapterConfig:
    """The configuration of the package in ``directory``. Raises PackageError and UnsupportedKindError."""
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise PackageError(f"there is no {CONFIG_FILE}; a package holds what peft's save_pretrained writes")
    return parse_config(read_object(path, limits.max_json_bytes), limits)


def parse_config(raw: Mapping[str, Any], limits: PackageLimits = DEFAULT_LIMITS) -> AdapterConfig:
    """The configuration in ``raw``. Raises PackageError and UnsupportedKindError."""
    peft_type = raw.get("peft_type")
    if not isinstance(peft_type, str):
        raise PackageError(f"{CONFIG_FILE} does not say a peft_type, so it is not a peft adapter's configuration")
    if peft_type in REFUSED:
        raise UnsupportedKindError(f"adapters of peft_type {peft_type!r} are not served: {REFUSED[peft_type]}")
    if peft_type not in CONFIGS:
        raise UnsupportedKindError(
            f"adapters of peft_type {shown(peft_type)} are not served; served are {', '.join(CONFIGS)}"
        )
    return CONFIGS[peft_type].parse(raw, limits)
