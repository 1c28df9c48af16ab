"""Measuring the native ops."""

from __future__ import annotations

import pytest

from benchmarks import kernels


def test_each_call_is_taken_at_its_fastest() -> None:
    calls: list[str] = []
    assert kernels.fastest([lambda: calls.append("a"), lambda: calls.append("b")], budget=0) > 0
    assert calls == ["a", "b"] * 3


def test_there_is_a_line_for_each_format_and_for_torch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "HEAD", (64, 576))
    monkeypatch.setattr(kernels, "LAYERS", 1)
    flags = {"--rows": "1,2", "--formats": "q4_1", "--seconds": "0", "--threads": "1"}
    assert kernels.main(["linear", *(part for flag in flags.items() for part in flag)]) == 0
    names = [line[:30].rstrip() for line in capsys.readouterr().out.splitlines()[2:]]
    part = ["q4_1", "q4_1", "q4_1 twin", "torch float32", "torch float32", "torch bfloat16", "torch bfloat16"]
    assert names == [f"{where} {what}" for where in ("layers", "head") for what in part]
