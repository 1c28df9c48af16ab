"""What is installed: every package of ours, and import names that nobody else's distribution brings."""

from __future__ import annotations

import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = ("adapters", "bases", "hotkernels", "hotswap", "server", "trainer")


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = [path.parent.relative_to(ROOT) for name in TOP_LEVEL for path in (ROOT / name).rglob("__init__.py")]
    assert sorted(listed) == sorted(".".join(path.parts) for path in found)


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for name in TOP_LEVEL for path in (ROOT / name).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_the_import_name_is_ours_alone(name: str) -> None:
    assert set(packages_distributions().get(name, ["hotswap"])) == {"hotswap"}


def test_the_pinned_versions_meet_the_ranges() -> None:
    from packaging.requirements import Requirement

    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for group in project["optional-dependencies"].values() for r in group)]
    for requirement in map(Requirement, wanted):
        pin = pins[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(pin), f"constraints.txt pins {requirement.name} {pin}, not {requirement}"


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_the_image_is_built_from_every_package(name: str) -> None:
    assert f"COPY {name} {name}\n" in (ROOT / "Dockerfile").read_text()
    assert f"!{name}\n" in (ROOT / ".dockerignore").read_text()
