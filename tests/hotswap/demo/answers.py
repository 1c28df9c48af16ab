"""Answers by hand, for what judges them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hotswap.demo.asking import Answer, ChatQuestion, Token

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
