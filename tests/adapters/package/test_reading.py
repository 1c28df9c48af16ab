"""Packages as peft saves them, loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adapters.package.inspection import inspect_package
from adapters.package.reading import read_package


def test_what_peft_saves_is_read(tiny_adapters: Mapping[str, Path]) -> None:
    for path in tiny_adapters.values():
        package, info = read_package(path), inspect_package(path)
        assert package.digest == info.digest
        assert package.nbytes == info.nbytes == sum(t.nbytes for t in package.tensors.values())
        assert package.manifest is None
    assert len({read_package(path).digest for path in tiny_adapters.values()}) == len(tiny_adapters)
