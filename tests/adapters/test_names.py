"""The rule for adapter names."""

from __future__ import annotations

import pytest

from adapters.errors import PackageError
from adapters.names import check_name, checkpoint_name, tuned_name


@pytest.mark.parametrize(
    "name", ["a", "A1", "contacts-v2", "x.y_z-1", "0", "a" * 128, "ft:tiny:acme:my-model:ab12", "ft:t:o::1"]
)
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "-a",
        ".a",
        "_a",
        "a b",
        "a\n",
        "é",
        "a" * 129,
        "a@1",
        "a:b",
        "ft:",
        "ft:a:b:c",
        "ft:a:b:c:d:e",
        "ft:../x:o:s:1",
        "ft:a:o:s/t:1",
        "ft::o:s:1",
    ],
)
def test_bad_names(name: str) -> None:
    with pytest.raises(PackageError, match="cannot name an adapter"):
        check_name(name)


def test_names_of_tuned_models_are_names_whatever_they_are_made_of() -> None:
    assert tuned_name("org/Smol-1.5", "acme", "my.model", "ab12") == "ft:Smol-1.5:acme:my.model:ab12"
    assert tuned_name("/a b/ü!", "", "", "ab12") == "ft:x:x::ab12"
    longest = tuned_name("b" * 500, "o" * 500, "s" * 500, "12345678")
    assert check_name(longest) == longest
    assert checkpoint_name(longest, 999_999) == f"{longest}:ckpt-step-999999"
