"""The settings of every training method. A new method is one struct here and one builder in ``trainer.methods``.

``default_learning_rate`` is the method's preset: one rate for all methods would favour some and ruin others.
``QUANTIZED`` are the quantizations of the base that the method can be trained on: some of peft's read weights as plain
numbers. ``target_modules`` are module names or a pattern; all-linear means every linear map but the output head; None
what peft chooses for the architecture.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from bases.names import QUANTIZATIONS

Positive = Annotated[int, Meta(ge=1)]
PositiveFloat = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, lt=1)]
Targets = list[str] | str


class LoraMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="lora", tag_field="type"):
    """Low-rank adaptation; ``use_dora`` trains a magnitude for every output feature beside it (DoRA).

    ``modules_to_save`` are trained and kept whole, such as lm_head or embed_tokens for a language the base lacks.
    """

    r: Positive = 8
    alpha: PositiveFloat = 16.0
    dropout: Share = 0.0
    target_modules: Targets = "all-linear"
    bias: Literal["none", "all", "lora_only"] = "none"
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[str, Positive] = {}
    alpha_pattern: dict[str, PositiveFloat] = {}
    modules_to_save: list[str] = []

    KIND: ClassVar[str] = "lora"
    QUANTIZED: ClassVar[tuple[str, ...]] = QUANTIZATIONS
    default_learning_rate: ClassVar[float] = 5e-4


class AdaLoraMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="adalora", tag_field="type"):
    """LoRA in the form of a singular value decomposition whose rank is shared out by importance while it trains.

    Every module begins with ``init_r`` components; ``target_r`` is the average that is left. Ranks stay as they are for
    the first ``tinit`` steps, shrink every ``delta_t`` steps, and are fixed for the last ``tfinal`` steps. Both are
    shares of the run below 1, otherwise numbers of steps; ``delta_t`` is a hundredth of the run when it is not given.
    ``orth_reg_weight`` keeps the factors close to orthogonal: its gradient is trained on, no reported loss includes it.
    """

    init_r: Positive = 12
    target_r: Positive = 8
    tinit: Annotated[float, Meta(ge=0)] = 0.1
    tfinal: Annotated[float, Meta(ge=0)] = 0.3
    delta_t: Positive | None = None
    alpha: PositiveFloat = 16.0
    beta1: Annotated[float, Meta(gt=0, lt=1)] = 0.85
    beta2: Annotated[float, Meta(gt=0, lt=1)] = 0.85
    orth_reg_weight: Annotated[float, Meta(ge=0)] = 0.5
    dropout: Share = 0.0
    target_modules: Targets = "all-linear"

    KIND: ClassVar[str] = "adalora"
    QUANTIZED: ClassVar[tuple[str, ...]] = QUANTIZATIONS
    default_learning_rate: ClassVar[float] = 5e-3


class VeraMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="vera", tag_field="type"):
    """Vector-based random matrix adaptation: frozen random factors shared by all modules, trained vectors."""

    r: Positive = 256
    dropout: Share = 0.0
    target_modules: Targets = "all-linear"

    KIND: ClassVar[str] = "vera"
    QUANTIZED: ClassVar[tuple[str, ...]] = QUANTIZATIONS
    default_learning_rate: ClassVar[float] = 1e-2


class LohaMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="loha", tag_field="type"):
    """Hadamard product of two low-rank updates."""

    r: Positive = 8
    alpha: PositiveFloat = 16.0
    target_modules: Targets = "all-linear"

    KIND: ClassVar[str] = "loha"
    QUANTIZED: ClassVar[tuple[str, ...]] = ("none", "int8", "gguf")
    default_learning_rate: ClassVar[float] = 2e-3


class LokrMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="lokr", tag_field="type"):
    """Kronecker product of a small matrix and a low-rank one. ``factor`` -1 makes both as equal as possible."""

    r: Positive = 8
    alpha: PositiveFloat = 16.0
    factor: int = -1
    target_modules: Targets = "all-linear"

    KIND: ClassVar[str] = "lokr"
    QUANTIZED: ClassVar[tuple[str, ...]] = ("none", "int8", "gguf")
    default_learning_rate: ClassVar[float] = 5e-3


class Ia3Method(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="ia3", tag_field="type"):
    """Scales keys, values and the inside of the feed-forward part. Both lists or neither."""

    target_modules: Targets | None = None
    feedforward_modules: Targets | None = None

    KIND: ClassVar[str] = "ia3"
    QUANTIZED: ClassVar[tuple[str, ...]] = QUANTIZATIONS
    default_learning_rate: ClassVar[float] = 1e-2


class OftMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="oft", tag_field="type"):
    """Orthogonal fine-tuning: block-diagonal rotations of the inputs."""

    block_size: Positive = 32
    target_modules: Targets = "all-linear"

    KIND: ClassVar[str] = "oft"
    QUANTIZED: ClassVar[tuple[str, ...]] = QUANTIZATIONS
    default_learning_rate: ClassVar[float] = 1e-3


class BoftMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="boft", tag_field="type"):
    """Orthogonal fine-tuning by butterfly factors. ``block_size`` divides the inputs of every adapted module."""

    block_size: Positive = 4
    factors: Positive = 1
    target_modules: Targets = "all-linear"

    KIND: ClassVar[str] = "boft"
    QUANTIZED: ClassVar[tuple[str, ...]] = ("none",)
    default_learning_rate: ClassVar[float] = 1e-3


class HraMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="hra", tag_field="type"):
    """Householder reflection adaptation with ``r`` (even) reflections."""

    r: Positive = 8
    target_modules: Targets = "all-linear"

    KIND: ClassVar[str] = "hra"
    QUANTIZED: ClassVar[tuple[str, ...]] = ("none",)
    default_learning_rate: ClassVar[float] = 2e-3


class MissMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="miss", tag_field="type"):
    """Matrix shard sharing: one small block for all shards of the input."""

    r: Positive = 16
    target_modules: Targets = "all-linear"

    KIND: ClassVar[str] = "miss"
    QUANTIZED: ClassVar[tuple[str, ...]] = QUANTIZATIONS
    default_learning_rate: ClassVar[float] = 5e-4


class LnTuningMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="ln_tuning", tag_field="type"):
    """Trains the norms' own weights."""

    target_modules: Targets | None = None

    KIND: ClassVar[str] = "ln_tuning"
    QUANTIZED: ClassVar[tuple[str, ...]] = QUANTIZATIONS
    default_learning_rate: ClassVar[float] = 5e-3


class BottleneckMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="bottleneck", tag_field="type"):
    """A small network with residual connection after the parts of every layer.

    ``houlsby``: after attention and feed-forward; ``pfeiffer``: after the feed-forward part only. ``target_modules``
    are the linear maps that end these parts, where they are not found by themselves.
    """

    bottleneck_size: Positive = 48
    layout: Literal["houlsby", "pfeiffer"] = "houlsby"
    activation: Literal["relu", "gelu", "gelu_tanh", "silu", "tanh"] = "gelu"
    target_modules: list[str] | None = None

    KIND: ClassVar[str] = "bottleneck"
    QUANTIZED: ClassVar[tuple[str, ...]] = QUANTIZATIONS
    default_learning_rate: ClassVar[float] = 1e-3


class FreezeMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="freeze", tag_field="type"):
    """Trains the last ``layers`` layers whole, and ``modules``; all else is frozen.

    A module is named by its path or the end of it: ``layers.27`` is ``model.layers.27``.
    """

    layers: Annotated[int, Meta(ge=0)] = 5
    modules: list[str] = []

    KIND: ClassVar[str] = "freeze"
    QUANTIZED: ClassVar[tuple[str, ...]] = ("none",)
    default_learning_rate: ClassVar[float] = 1e-4


class FullMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="full", tag_field="type"):
    """Full fine-tuning: every parameter of the base is trained, and the result is a new base, no adapter."""

    KIND: ClassVar[str] = "full"
    QUANTIZED: ClassVar[tuple[str, ...]] = ("none",)
    default_learning_rate: ClassVar[float] = 1e-5


class PrefixMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="prefix", tag_field="type"):
    """Prefix tuning: trained keys and values before the prompt in every layer.

    With ``projection`` they are the output of a small network with one hidden layer of ``projection_hidden_size``,
    which learns far faster; the package holds its output only, so serving costs the same.
    """

    tokens: Positive = 16
    projection: bool = True
    projection_hidden_size: Positive = 512

    KIND: ClassVar[str] = "prefix"
    QUANTIZED: ClassVar[tuple[str, ...]] = QUANTIZATIONS

    @property
    def default_learning_rate(self) -> float:
        """The preset: measured on the default base."""
        return 3e-3 if self.projection else 2e-2


class PromptMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="prompt", tag_field="type"):
    """Prompt tuning: trained input embeddings before the prompt.

    They start as the embeddings of ``init_text``, repeated or cut to ``tokens``; without a text, of random tokens.
    """

    tokens: Positive = 16
    init_text: str | None = None

    KIND: ClassVar[str] = "prompt"
    QUANTIZED: ClassVar[tuple[str, ...]] = QUANTIZATIONS
    default_learning_rate: ClassVar[float] = 2e-2


class PTuningMethod(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="p_tuning", tag_field="type"):
    """P-Tuning v1: input embeddings before the prompt, made by a small network; the package holds its output only."""

    tokens: Positive = 16
    encoder: Literal["mlp", "lstm"] = "mlp"
    hidden_size: Positive = 256

    KIND: ClassVar[str] = "p_tuning"
    QUANTIZED: ClassVar[tuple[str, ...]] = QUANTIZATIONS
    default_learning_rate: ClassVar[float] = 5e-3


Method = (
    LoraMethod
    | AdaLoraMethod
    | VeraMethod
    | LohaMethod
    | LokrMethod
    | Ia3Method
    | OftMethod
    | BoftMethod
    | HraMethod
    | MissMethod
    | LnTuningMethod
    | BottleneckMethod
    | FreezeMethod
    | FullMethod
    | PrefixMethod
    | PromptMethod
    | PTuningMethod
)
METHODS: dict[str, type[Method]] = {
    struct.KIND: struct
    for struct in (
        LoraMethod,
        AdaLoraMethod,
        PrefixMethod,
        PromptMethod,
        PTuningMethod,
        Ia3Method,
        BottleneckMethod,
        FreezeMethod,
        FullMethod,
        LnTuningMethod,
        VeraMethod,
        LohaMethod,
        LokrMethod,
        OftMethod,
        BoftMethod,
        HraMethod,
        MissMethod,
    )
}


def trains_weights(method: Method) -> bool:
    """Whether ``method`` trains weights, norms or biases of the base itself.

    They are kept in float32 then: bfloat16 has 8 bits of precision, and a step of Adam that is smaller than a 256th of
    a weight would be lost. ``training.dtype`` bfloat16 means mixed precision for such methods.
    """
    beside = bool(getattr(method, "modules_to_save", [])) or getattr(method, "bias", "none") != "none"
    return beside or isinstance(method, FreezeMethod | FullMethod | LnTuningMethod)
