"""The kinds that are served, a line each, and those that are not, with the reason. Imports no torch.

A strict reader of peft's ``adapter_config.json``, written against what peft 0.21 saves: every key is understood,
known to be harmless, or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.activations.config import BeftConfig, BottleneckConfig, IA3Config
from adapters.kinds.config import CONFIG_FILE, AdapterConfig
from adapters.kinds.delta.config import (
    C3AConfig,
    DeftConfig,
    FourierFTConfig,
    GloraConfig,
    HiraConfig,
    OSFConfig,
    PeanutConfig,
    ShiraConfig,
    SupertuningConfig,
    WaveFTConfig,
)
from adapters.kinds.factors.config import AdaLoraConfig, DeloraConfig, GraloraConfig, LoHaConfig, LoKrConfig, MissConfig
from adapters.kinds.lora.config import LoraConfig
from adapters.kinds.prompt.config import (
    CartridgeConfig,
    CPTConfig,
    MultitaskPromptTuningConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from adapters.kinds.replacement.config import FreezeConfig, LnTuningConfig, TrainableTokensConfig
from adapters.kinds.rotation.config import BOFTConfig, HRAConfig, OFTConfig, RoadConfig
from adapters.kinds.shared_factors.config import (
    FrodConfig,
    PveraConfig,
    RandLoraConfig,
    TinyLoraConfig,
    UniLoraConfig,
    VBLoraConfig,
    VeraConfig,
)
from adapters.limits import DEFAULT_LIMITS, PackageLimits
from adapters.quoting import quote

if TYPE_CHECKING:  # compilers need torch
    from adapters.base_spec import BaseSpec
    from adapters.kinds.saved_adapter import SavedAdapter
    from adapters.ops import Adapter

    Compiler = Callable[[SavedAdapter, BaseSpec], Adapter]


@dataclass(frozen=True)
class Kind:
    """A kind that is served: what its configuration is, and what makes ops of its tensors.

    ``compiler`` is ``module:function`` below ``adapters.kinds``. It is imported when it is first used: it needs torch,
    which the API process does without.
    """

    config: type[AdapterConfig]
    compiler: str

    def load_compiler(self) -> Compiler:
        """The function that ``compiler`` names."""
        module, _, function = self.compiler.partition(":")
        found: Compiler = getattr(import_module(f"adapters.kinds.{module}"), function)
        return found


KINDS: Mapping[str, Kind] = {
    "LORA": Kind(LoraConfig, "lora.compiler:compile_lora"),
    "FOURIERFT": Kind(FourierFTConfig, "delta.spectral:compile_fourierft"),
    "SHIRA": Kind(ShiraConfig, "delta.entries:compile_shira"),
    "C3A": Kind(C3AConfig, "delta.spectral:compile_c3a"),
    "WAVEFT": Kind(WaveFTConfig, "delta.spectral:compile_waveft"),
    "HIRA": Kind(HiraConfig, "delta.from_weight:compile_hira"),
    "GLORA": Kind(GloraConfig, "delta.glora:compile_glora"),
    "OSF": Kind(OSFConfig, "delta.from_weight:compile_osf"),
    "DEFT": Kind(DeftConfig, "delta.from_weight:compile_deft"),
    "PEANUT": Kind(PeanutConfig, "delta.peanut:compile_peanut"),
    "PREFIX_TUNING": Kind(PrefixTuningConfig, "prompt.compiler:compile_prefix"),
    "PROMPT_TUNING": Kind(PromptTuningConfig, "prompt.compiler:compile_prompt"),
    "P_TUNING": Kind(PromptEncoderConfig, "prompt.compiler:compile_prompt"),
    "MULTITASK_PROMPT_TUNING": Kind(MultitaskPromptTuningConfig, "prompt.compiler:compile_multitask"),
    "CPT": Kind(CPTConfig, "prompt.compiler:compile_prompt"),
    "CARTRIDGE": Kind(CartridgeConfig, "prompt.compiler:compile_prefix"),
    "TRAINABLE_TOKENS": Kind(TrainableTokensConfig, "replacement.tokens:compile_tokens"),
    "IA3": Kind(IA3Config, "activations.vectors:compile_ia3"),
    "LN_TUNING": Kind(LnTuningConfig, "replacement.ln_tuning:compile_ln_tuning"),
    "BEFT": Kind(BeftConfig, "activations.vectors:compile_beft"),
    "OFT": Kind(OFTConfig, "rotation.oft:compile_oft"),
    "BOFT": Kind(BOFTConfig, "rotation.oft:compile_boft"),
    "HRA": Kind(HRAConfig, "rotation.hra:compile_hra"),
    "ROAD": Kind(RoadConfig, "rotation.road:compile_road"),
    "MISS": Kind(MissConfig, "factors.miss:compile_miss"),
    "SUPERTUNING": Kind(SupertuningConfig, "delta.entries:compile_supertuning"),
    "ADALORA": Kind(AdaLoraConfig, "factors.lora_like:compile_adalora"),
    "VERA": Kind(VeraConfig, "shared_factors.vera:compile_vera"),
    "PVERA": Kind(PveraConfig, "shared_factors.vera:compile_pvera"),
    "LOHA": Kind(LoHaConfig, "factors.lycoris:compile_loha"),
    "LOKR": Kind(LoKrConfig, "factors.lycoris:compile_lokr"),
    "RANDLORA": Kind(RandLoraConfig, "shared_factors.randlora:compile_randlora"),
    "VBLORA": Kind(VBLoraConfig, "shared_factors.vblora:compile_vblora"),
    "TINYLORA": Kind(TinyLoraConfig, "shared_factors.tinylora:compile_tinylora"),
    "UNILORA": Kind(UniLoraConfig, "shared_factors.unilora:compile_unilora"),
    "GRALORA": Kind(GraloraConfig, "factors.lora_like:compile_gralora"),
    "DELORA": Kind(DeloraConfig, "factors.lora_like:compile_delora"),
    "FROD": Kind(FrodConfig, "shared_factors.frod:compile_frod"),
    "BOTTLENECK": Kind(BottleneckConfig, "activations.bottleneck:compile_bottleneck"),
    "FREEZE": Kind(FreezeConfig, "replacement.freeze:compile_freeze"),
}

REFUSED: Mapping[str, str] = {
    "ADAMSS": (
        "AdaMSS saves no list of the output features that each of its subspaces covers: peft finds them again by "
        "clustering the base's weights with scikit-learn, and may find others; train LoRA or PEANuT instead"
    ),
    "ADAPTION_PROMPT": (
        "adaption prompts attend to rows of their own inside the attention of the upper layers, which the paged cache "
        "has no place for; train prefix tuning instead"
    ),
    "LILY": (
        "Lily mixes its adapters by an average over all tokens of a batch, so that what one request gets depends on "
        "the others and on how its prompt is cut; train LoRA or VeRA instead"
    ),
    "POLY": "Poly chooses among its skills by a task that no request names; publish one LoRA for each task instead",
    "PSOFT": (
        "PSOFT saves a rotation between singular vectors of the base's weights without these vectors, whose signs are "
        "others on another device or in another precision; save it as a LoRA, which it is exactly: peft.save_as_lora "
        "with rank r"
    ),
    "SHADOW": (
        "ShadowPEFT runs a second network with a cache of its own beside the base, not an adapter of its modules; "
        "train LoRA instead"
    ),
    "XLORA": (
        "X-LoRA runs the base twice for every token and mixes other adapters, which are not in the package, by what it "
        "found; publish the LoRA adapters themselves"
    ),
}


def parse_config(raw: Mapping[str, Any], limits: PackageLimits = DEFAULT_LIMITS) -> AdapterConfig:
    """The configuration in ``raw``. Raises PackageError and UnsupportedKindError."""
    peft_type = raw.get("peft_type")
    if not isinstance(peft_type, str):
        raise PackageError(f"{CONFIG_FILE} does not say a peft_type, so it is not a peft adapter's configuration")
    if peft_type in REFUSED:
        raise UnsupportedKindError(f"adapters of peft_type {peft_type!r} are not served: {REFUSED[peft_type]}")
    if peft_type not in KINDS:
        raise UnsupportedKindError(
            f"adapters of peft_type {quote(peft_type)} are not served; served are {', '.join(KINDS)}"
        )
    return KINDS[peft_type].config.parse(raw, limits)
