"""The keys under ``preference``: training from comparisons, judgements or a reward instead of answers to repeat.

``LEARNING_RATE_SCALE`` lowers the method's preset: these losses move a model much faster than cross entropy does.
``beta`` says how closely the model is held to the reference, which is the base without the adapter.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from trainer.config.data import absolute
from trainer.config.methods import Positive, PositiveFloat, Share

NotNegative = Annotated[float, Meta(ge=0)]
TAG = "type"


class PreferenceColumns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which columns hold what beside the prompt, whose columns are those of ``data.columns``."""

    chosen: str = "chosen"
    rejected: str = "rejected"
    completion: str = "completion"
    label: str = "label"


class DpoPreference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="dpo", tag_field=TAG):
    """Direct preference optimization (Rafailov et al. 2023) on pairs of a chosen and a rejected answer.

    ``rpo_alpha`` adds so many parts of the cross entropy of the chosen answers (RPO). ``label_smoothing`` is for the
    losses robust, exo_pair, aot and aot_unpaired. ``ld_alpha`` weighs what is longer than the shorter answer (LD-DPO).
    ``disable_dropout`` is as in trl.
    """

    beta: PositiveFloat = 0.1
    loss_type: Literal[
        "sigmoid",
        "ipo",
        "hinge",
        "robust",
        "exo_pair",
        "nca_pair",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
        "sigmoid_norm",
    ] = "sigmoid"
    rpo_alpha: NotNegative = 0.0
    label_smoothing: Annotated[float, Meta(ge=0, lt=0.5)] = 0.0
    ld_alpha: Annotated[float, Meta(ge=0, le=1)] | None = None
    disable_dropout: bool = True
    columns: PreferenceColumns = PreferenceColumns()

    KIND: ClassVar[str] = "dpo"
    LEARNING_RATE_SCALE: ClassVar[float] = 0.1


class KtoPreference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="kto", tag_field=TAG):
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024) on single answers judged good or bad.

    The two weights balance unequal numbers of good and bad answers.
    """

    beta: PositiveFloat = 0.1
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    desirable_weight: PositiveFloat = 1.0
    undesirable_weight: PositiveFloat = 1.0
    disable_dropout: bool = True
    columns: PreferenceColumns = PreferenceColumns()

    KIND: ClassVar[str] = "kto"
    LEARNING_RATE_SCALE: ClassVar[float] = 0.1


class RewardPreference(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="reward", tag_field=TAG
):
    """A reward model: the adapter and a head that scores an answer, trained on pairs (Bradley and Terry).

    ``center_rewards`` draws the scores' mean to zero (Eisenstein et al. 2023); 0.01 is a usual weight.
    """

    center_rewards: NotNegative = 0.0
    disable_dropout: bool = True
    columns: PreferenceColumns = PreferenceColumns()

    KIND: ClassVar[str] = "reward"
    LEARNING_RATE_SCALE: ClassVar[float] = 0.2


class GrpoPreference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="grpo", tag_field=TAG):
    """Group relative policy optimization (Shao et al. 2024): the model's own answers, scored by a function.

    ``reward`` is ``module:function`` or ``file.py:function``, of the signature ``(completions: list[str], rows:
    list[dict]) -> list[float]``, where the rows are those of the data. It is run as it is: name only code that you
    trust. ``num_generations`` answers are drawn for each prompt.
    """

    reward: str
    beta: NotNegative = 0.0
    num_generations: Annotated[int, Meta(ge=2)] = 8
    max_completion_length: Positive = 128
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    epsilon: Share = 0.2
    num_iterations: Positive = 1
    scale_rewards: Literal["group", "batch", "none"] = "group"

    KIND: ClassVar[str] = "grpo"
    LEARNING_RATE_SCALE: ClassVar[float] = 0.2


Preference = DpoPreference | KtoPreference | RewardPreference | GrpoPreference
PREFERENCES: dict[str, type[Preference]] = {
    kind.KIND: kind for kind in (DpoPreference, KtoPreference, RewardPreference, GrpoPreference)
}


def summary_of(preference: Preference) -> dict[str, str | int | float | bool]:
    """The settings by flat names, for a package. Of a reward's source only the function's name: paths stay at home."""
    out: dict[str, str | int | float | bool] = {"preference": preference.KIND}
    for key, value in msgspec.to_builtins(preference).items():
        if isinstance(value, (str, int, float)) and key != TAG:
            name = str(value).rpartition(":")[2] if key == "reward" else value
            out[f"preference_{key}"] = name
    return out


def complete_preference(preference: Preference | None) -> Preference | None:
    """``preference`` standing for itself: the file of a reward by its absolute path."""
    if not isinstance(preference, GrpoPreference):
        return preference
    source, colon, function = preference.reward.rpartition(":")
    if not source.endswith(".py"):
        return preference
    return msgspec.structs.replace(preference, reward=f"{absolute(source)}{colon}{function}")
