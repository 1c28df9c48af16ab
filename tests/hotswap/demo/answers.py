"""Answers and findings by hand, for what judges them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from hotswap.demo.asking import Answer, ChatQuestion, Token
from hotswap.demo.findings import Findings, Phase, Scored, Verdict, key_of
from hotswap.demo.tasks import DATES, TaskRow

ROWS = [TaskRow(f"p{i}", f"r{i}") for i in range(10)]
Spoken = str | tuple[str, Mapping[str, float]]


def answer(
    tokens: Sequence[Spoken] = ("a", "b"),
    *,
    model: str = "contacts",
    version: str = "contacts@1",
    prompt: str = "p",
    start: float = 0.0,
    step: float = 1.0,
    error: str | None = None,
) -> Answer:
    """An answer with a token every ``step`` seconds, each certain unless rivals' log-probabilities are given.

    The chosen token of ``("a", {"b": -0.8})`` has log-probability -0.7.
    """
    spoken = [token if isinstance(token, tuple) else (token, {}) for token in tokens]
    made = [Token(text, -0.7 if rivals else 0.0, {text: -0.7 if rivals else 0.0, **rivals}) for text, rivals in spoken]
    stamps = [start + step * (i + 1) for i in range(len(made))]
    suffix = f":{version}" if version else ""
    return Answer(
        ChatQuestion(model, prompt, 16),
        start,
        end=stamps[-1] if stamps else start,
        version=version,
        fingerprints={f"fp_1{suffix}"},
        text="".join(token.text for token in made),
        finish_reason="stop",
        tokens=made,
        stamps=stamps,
        error=error,
    )


def scored(who: str, right: int) -> Scored:
    """ROWS, of which the first ``right`` are answered right."""
    return Scored(who, DATES, ROWS, [answer([row.response if i < right else "?"]) for i, row in enumerate(ROWS)])


def good() -> Findings:
    """A run in which everything went well: the replacement takes from second 10 to second 20."""
    lone = [answer(["old"], version="contacts@1"), answer(["new"], version="contacts@2")]
    return Findings(
        scores={
            "base on contacts": scored("base on contacts", 1),
            "base on dates": scored("base on dates", 0),
            "contacts v1": scored("contacts v1", 3),
            "contacts v2": scored("contacts v2", 10),
            "dates": scored("dates", 9),
        },
        phases=[Phase("mixed", 0, 10), Phase("replace", 10, 20), Phase("after", 20, 30)],
        answers=[
            answer(["old"], version="contacts@1", start=2),
            answer(["old"] * 8, version="contacts@1", start=12),  # until 20: past version 2's first token at 18
            answer(["new"], version="contacts@2", start=17),
            answer(["new"], version="contacts@2", start=22),
            answer(["b"], model="base", version="", start=22),
        ],
        lone={key_of(a): a for a in lone},
        verdicts=Counter({Verdict.SAME: 5}),
        server_exit_code=0,
    )
