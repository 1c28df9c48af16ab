"""From a configuration to the work that it asks for. A new kind of preference training is one line here."""

from __future__ import annotations

from trainer.base_model import Base
from trainer.config.preference import DpoPreference, GrpoPreference, KtoPreference, RewardPreference
from trainer.config.schema import TrainConfig
from trainer.preference.reference_work import DpoWork, KtoWork
from trainer.preference.work import Work


def make_work(config: TrainConfig, base: Base) -> Work:
    """The work that ``config.preference`` asks for, its data loaded."""
    preference = config.preference
    if isinstance(preference, DpoPreference):
        return DpoWork(config, preference, base)
    if isinstance(preference, KtoPreference):
        return KtoWork(config, preference, base)
    if isinstance(preference, RewardPreference):
        from trainer.preference.reward_work import RewardWork

        return RewardWork(config, preference, base)
    assert isinstance(preference, GrpoPreference)
    from trainer.preference.grpo_work import GrpoWork

    return GrpoWork(config, preference, base)
