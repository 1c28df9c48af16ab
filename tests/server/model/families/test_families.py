"""Every architecture, adapters mixed in one batch through the engine, against peft running each alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.model.families.catalog import FAMILIES
from tests.server.model.families.sweep import TOLERANCE, measure


# peft itself makes this pattern of "all-linear", and then looks for it among modules only
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, tmp_path: Path) -> None:
    for kind, far in measure(name, tmp_path).items():
        assert far < TOLERANCE, f"{kind} on {name} is off by {far:.1e}"
