"""Every test here runs on each variant that this machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hotkernels import native

THREADS = (1, 2, 3)
IS_AVX2_ONLY = os.environ.get("ATEN_CPU_CAPABILITY") == "avx2"  # the run as on such a machine: others have all variants
VARIANTS = [name for name in native.installed() if name == "avx2" or not IS_AVX2_ONLY]


@pytest.fixture(params=[*VARIANTS, native.TORCH])
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    """The variant that ops run in."""
    name: str = request.param
    with native.using(name):
        native.set_num_threads(2)
        yield name
