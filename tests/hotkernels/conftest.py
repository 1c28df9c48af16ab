"""Every test here runs on each variant that this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hotkernels import native

THREADS = (1, 2, 3)


@pytest.fixture(params=[*native.installed(), native.TORCH])
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """The variant that ops run in."""
    name: str = request.param
    with native.using(name):
        native.set_num_threads(2)
        yield name
