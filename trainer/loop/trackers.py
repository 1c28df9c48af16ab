"""Trackers of experiments, which are transformers' own."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.errors import ConfigError


def require_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError for the first of ``names`` that transformers does not know or that is not installed."""
    if not names:
        return
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    installed = get_available_reporting_integrations()
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ConfigError(f"training.trackers: {name!r} is none of {', '.join(sorted(INTEGRATION_TO_CALLBACK))}")
        if name not in installed:
            raise ConfigError(f"training.trackers: {name} is not installed; install it, or leave it out")
