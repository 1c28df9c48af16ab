"""The rule for adapter names."""

from __future__ import annotations

import pytest

from adapters.errors import PackageError
from adapters.names import check_name


@pytest.mark.parametrize("name", ["a", "A1", "contacts-v2", "x.y_z-1", "0", "a" * 128])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "-a", ".a", "_a", "a b", "a\n", "é", "a" * 129, "a@1"])
def test_bad_names(name: str) -> None:
    with pytest.raises(PackageError, match="cannot name an adapter"):
        check_name(name)
