"""What is made of figures: ratios within a round, bars, and the section of a page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.speed.loads import LOADS, OWN_LIMITS
from benchmarks.speed.measuring import Measured
from benchmarks.speed.report import plot, tables, write_section


def measured(server: str, load: str, number: int, tok_s: float, itl: float = 10.0) -> Measured:
    return Measured(
        server, load, number, tok_s, 100.0, 100.0, itl, itl, itl_together_p50_ms=0.0, pss_mb=500.0, errors=0
    )


SLOW_MINUTE = [  # the second round met a slow minute that both felt alike
    measured("hotswap", "base, 1 stream", 0, 100.0, itl=8.0),
    measured("llama.cpp", "base, 1 stream", 0, 50.0, itl=16.0),
    measured("hotswap", "base, 1 stream", 1, 20.0, itl=40.0),
    measured("llama.cpp", "base, 1 stream", 1, 10.0, itl=80.0),
]


def test_ratios_are_taken_within_a_round() -> None:
    text = tables(SLOW_MINUTE, bf16=False)
    assert "| base, 1 stream | llama.cpp | 2.00 | 2.00 | 1.00 | 1.00 |" in text
    assert "| base, 1 stream | hotswap | 60.0 | 100 / 100 | 24.0 / 24.0 | - | 500 | 0 |" in text  # medians of both
    assert "| base, 1 stream: tokens a second | llama.cpp, the same | 2.00 | 1.2 | 2 |" in text


def test_a_round_of_one_alone_gives_no_ratio() -> None:
    alone = [measured("hotswap", "base, 1 stream", 0, 100.0), measured("llama.cpp", "base, 1 stream", 1, 50.0)]
    assert "hotswap over" in tables(alone, bf16=False)
    assert "| base, 1 stream | llama.cpp | 2" not in tables(alone, bf16=False)


@pytest.mark.parametrize(("bf16", "goal"), [(False, "| 2 | 3 |"), (True, "| 1.2 | 1.5 |")])
def test_a_bar_is_held_against_the_best_rival(bf16: bool, goal: str) -> None:
    rates = {"hotswap": 240.0, "llama.cpp": 100.0, "vLLM": 200.0}
    text = tables([measured(name, "base, 8 streams", 0, rate) for name, rate in rates.items()], bf16)
    assert f"| base, 8 streams: tokens a second | vLLM, the same | 1.20 {goal}" in text
    assert "llama.cpp, the same" not in text


def test_sixteen_adapters_are_held_against_the_base_alone_too() -> None:
    found = [
        measured("hotswap", "16 LoRA, 8 streams", 0, 150.0),
        measured("vLLM", "16 LoRA, 8 streams", 0, 50.0),
        measured("vLLM", "base, 8 streams", 0, 100.0),
    ]
    text = tables(found, bf16=True)
    assert "| 16 LoRA, 8 streams: tokens a second | vLLM, base, 8 streams | 1.50 | 1 | – |" in text
    assert "| 16 LoRA, 8 streams: tokens a second | vLLM, the same | 3.00 | 3 | – |" in text


def test_a_limit_is_held_against_the_median() -> None:
    (limit,) = OWN_LIMITS
    assert limit.load in {load.name for load in LOADS}
    base = measured("hotswap", limit.load, 0, 100.0)
    text = tables([replace(base, round=number, pss_mb=pss) for number, pss in enumerate((800, 850, 990))], bf16=False)
    assert f"| {limit.name} | 850 | 900 at most | 700 |" in text


def test_without_rivals_there_is_no_word_of_them() -> None:
    text = tables([one for one in SLOW_MINUTE if one.server == "hotswap"], bf16=False)
    assert "against" not in text
    assert "over" not in text


def test_a_section_is_put_in_place_of_the_last_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n## Before\n\na\n\n## Rivals (old)\n\nb\n\n## After\n\nc\n")
    write_section(page, "Rivals", "| 1 |")
    assert page.read_text().endswith("## After\n\nc\n\n## Rivals\n\n| 1 |\n")
    write_section(page, "Before", "new\n\n")
    write_section(page, "Rivals", "| 2 |")
    whole = "# Page\n\n## Before\n\nnew\n\n## Rivals (old)\n\nb\n\n## After\n\nc\n\n## Rivals\n\n| 2 |\n"
    assert page.read_text() == whole


def test_a_page_is_made_where_there_is_none(tmp_path: Path) -> None:
    write_section(tmp_path / "page.md", "Rivals", "| 1 |")
    assert (tmp_path / "page.md").read_text() == "## Rivals\n\n| 1 |\n"


def test_a_plot_has_what_was_measured(tmp_path: Path) -> None:
    plot([*SLOW_MINUTE, measured("vLLM", "16 LoRA, 8 streams", 0, 50.0)], tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
