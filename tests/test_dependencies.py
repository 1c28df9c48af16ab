"""What pyproject.toml declares is what the code imports, no less and no more."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = ("adapters", "bases", "hotkernels", "hotswap", "server", "trainer")
BESIDE = ("benchmarks", "deploy", "loadtests", "tests")
# Declared without an import of ours, and why.
NEVER_IMPORTED = {
    "flask": "of moto's server",
    "flask-cors": "of moto's server",
    "import-linter": "a command",
    "moto": "a server that tests start where it is installed",
    "mypy": "a command",
    "opentelemetry-sdk": "one of several that make up a package of one name",
    "pre-commit": "a command",
    "pytest-timeout": "a plugin, switched on by an option",
    "pytest-xdist": "a plugin, switched on by an option",
    "ruff": "a command",
    "s3fs": "what fsspec imports for s3:// URLs",
    "types-pyyaml": "stubs, which mypy reads",
}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imports(path: Path) -> Iterator[str]:
    """Top-level names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).partition(".")[0]


distributions = cache(packages_distributions)


@cache
def imported(folder: str) -> frozenset[str]:
    """Third-party distributions that a top-level package imports."""
    names = {name for path in (ROOT / folder).rglob("*.py") for name in imports(path)}
    foreign = names - set(sys.stdlib_module_names) - {*INSTALLED, *BESIDE}
    known = distributions()
    return frozenset(normalised(known.get(name, [name])[0]) for name in foreign)


def declared() -> tuple[set[str], set[str]]:
    """What every installation gets, and what the extras add."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [item for group in project["optional-dependencies"].values() for item in group]
    always, optional = (
        {normalised(re.split(r"[\s<>=!~\[;]", item)[0]) for item in items}
        for items in (project["dependencies"], extras)
    )
    return always, optional


def test_every_import_is_declared() -> None:
    always, optional = declared()
    missing = {folder: imported(folder) - always - optional for folder in (*INSTALLED, *BESIDE)}
    assert {folder: names for folder, names in missing.items() if names} == {}


def test_every_declared_dependency_is_imported() -> None:
    always, optional = declared()
    ours = frozenset[str]().union(*map(imported, INSTALLED))
    anywhere = ours.union(*map(imported, BESIDE))
    assert always - ours == set(), "declared for every installation and imported nowhere in it"
    assert optional - anywhere - set(NEVER_IMPORTED) == set(), "declared by an extra and imported nowhere"
    assert set(NEVER_IMPORTED) <= (always | optional) - anywhere, "an exception that is none"


def test_the_extra_of_development_holds_what_tests_import() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, items in project["optional-dependencies"].items():
        if name not in ("dev", "deepspeed"):  # DeepSpeed builds for minutes, and its test needs a GPU
            assert set(items) <= set(project["optional-dependencies"]["dev"]), f"{name} is missing in dev"
