"""Where the published data sets lie, beside the checkout; tests that read them skip without."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data"


def needs(folder: str) -> pytest.MarkDecorator:
    """Skips where the set in ``folder`` is not at hand."""
    path = SHARED / folder
    return pytest.mark.skipif(not path.is_dir(), reason=f"needs the data set in {path}")
