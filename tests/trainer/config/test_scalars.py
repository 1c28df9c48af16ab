from __future__ import annotations

import math

import pytest

from trainer.config.scalars import plain_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("5e-4", 5e-4), ("1E5", 1e5), ("+.5", 0.5), ("5.", 5.0), ("1_0.5", 10.5), ("-.inf", -math.inf)),
        *(("12", 12), ("-1", -1), ("017", 17), ("0x1f", 31), ("0o17", 15), ("-0b11", -3), ("1_000", 1000)),
        *(("on", True), ("No", False), ("TRUE", True), ("", None), ("~", None), ("NULL", None)),
    ],
)  # fmt: skip
def test_numbers_switches_and_null(text: str, value: object) -> None:
    found = plain_value(text)
    assert (found, type(found)) == (value, type(value))


def test_nan_is_a_number() -> None:
    assert math.isnan(plain_value(".nan"))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "5e-4_lora",
            "1e-4x",
            "2024-02-30",
            "2024-01-01",
            "0b_",
            "0x",
            "0x_",
            "1e",
            "e5",
            ".",
            "-",
            "_1",
            "1:30",
            "1,5",
        ),
        *("1 000", "yEs", "y", "nULL", "none", "inf", "nan", "١٢", "0x1g", "1e1_0", "1.2.3", "1" * 5000),
    ],
)
def test_what_only_looks_like_one_is_text(text: str) -> None:
    assert plain_value(text) == text
