"""Packages made for another base or chat template are refused, and both are named; factors keep their type."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from adapters.compiling import compile_package
from adapters.errors import BaseMismatchError
from adapters.ops import LowRank
from adapters.package.manifest import BaseRef, Manifest
from adapters.package.reading import read_package
from adapters.package.writing import write_package
from tests.adapters.support import LORA_CONFIG, SMALL_SPEC, lora_tensors


def write_with_manifest(path: Path, fingerprint: str, template: str | None) -> Path:
    manifest = Manifest(
        kind="lora", base=BaseRef("their-base", fingerprint), created=datetime.now(UTC), chat_template_sha256=template
    )
    write_package(path, LORA_CONFIG, lora_tensors(), manifest)
    return path


def test_another_base_is_named(tmp_path: Path) -> None:
    package = read_package(write_with_manifest(tmp_path / "p", "e" * 64, None))
    words = "made for the base 'their-base' .*eeeeeeeeeeee.* serves 'small' .*ffffffffffff.*train the adapter"
    with pytest.raises(BaseMismatchError, match=words):
        compile_package(package, SMALL_SPEC)


def test_another_chat_template_is_refused(tmp_path: Path) -> None:
    package = read_package(write_with_manifest(tmp_path / "p", SMALL_SPEC.fingerprint, "b" * 64))
    with pytest.raises(BaseMismatchError, match="another chat template"):
        compile_package(package, SMALL_SPEC)
    assert compile_package(package, replace(SMALL_SPEC, chat_template_sha256="b" * 64)).ops
    assert compile_package(package, replace(SMALL_SPEC, chat_template_sha256=None)).ops


def test_a_template_that_comes_along_is_no_mismatch_where_it_is_used(tmp_path: Path) -> None:
    own = "{{ messages }}"
    path = write_with_manifest(tmp_path / "p", SMALL_SPEC.fingerprint, hashlib.sha256(own.encode()).hexdigest())
    allowing = replace(SMALL_SPEC, adapter_templates=True)
    with pytest.raises(BaseMismatchError, match="another chat template"):
        compile_package(read_package(path), allowing)
    (path / "chat_template.jinja").write_text(own)
    assert compile_package(read_package(path), allowing).ops
    with pytest.raises(BaseMismatchError, match="another chat template"):
        compile_package(read_package(path), SMALL_SPEC)
    (path / "chat_template.jinja").write_text("another")
    with pytest.raises(BaseMismatchError, match="another chat template"):
        compile_package(read_package(path), allowing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alpha", [8, 9])
def test_factors_stay_in_their_type_where_their_scale_is_exact_in_it(
    dtype: torch.dtype, alpha: int, tmp_path: Path
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in lora_tensors().items()}
    write_package(tmp_path / "p", {**LORA_CONFIG, "lora_alpha": alpha}, tensors)
    ops = compile_package(read_package(tmp_path / "p"), SMALL_SPEC).ops
    for module, (op,) in ops.items():
        assert isinstance(op, LowRank)
        a, b = (tensors[f"base_model.model.{module}.lora_{name}.weight"] for name in "AB")
        assert op.a.dtype == dtype
        assert op.b.dtype == (dtype if alpha == 8 else torch.float32)
        assert torch.equal(op.a, a.T)
        assert torch.equal(op.b.float(), b.float().T * (alpha / 4))
