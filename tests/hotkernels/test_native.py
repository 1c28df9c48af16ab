"""Which variant of the native library runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hotkernels import native


def test_the_best_variant_is_taken() -> None:
    assert native.variant() in (*native.installed()[:1], native.TORCH)


@pytest.mark.parametrize("name", [*native.installed(), native.TORCH])
def test_the_environment_names_a_variant(name: str) -> None:
    with native.using(name):
        assert native.variant() == name
        assert (native.library() is None) == (name == native.TORCH)


def test_an_unknown_variant_is_refused_by_name() -> None:
    with native.using("mmx"), pytest.raises(native.KernelError, match="HOTSWAP_KERNELS=mmx is none of amx, avx512vnni"):
        native.variant()


def test_a_process_ends_while_threads_wait() -> None:
    code = (
        "import torch; from hotkernels import native; from hotkernels.norm import rms_norm\n"
        "native.set_num_threads(3); rms_norm(torch.randn(100, 8), torch.randn(8), 1e-5)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
