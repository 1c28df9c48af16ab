from __future__ import annotations

from trainer.tables import aligned


def test_words_begin_at_the_left_and_figures_end_at_the_right() -> None:
    rows = [("lora", "1,000", "a"), ("ia3", "20", "")]
    assert aligned(("method", "size", "what"), rows, left=(0, 2)).splitlines() == [
        "method   size  what",
        "lora    1,000  a",
        "ia3        20",
    ]
