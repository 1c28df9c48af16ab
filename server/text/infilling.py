"""Filling in the middle: prompts that give what stands before and behind, by the tokens a base was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.text.tokenizer import TextProcessor

# Before, behind, in between; the last two of Mistral's: what is behind comes first, and nothing marks the middle.
_FORMS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    ("[PREFIX]", "[SUFFIX]", ""),  # Codestral
)
_ENDS = (
    "<|endoftext|>", "<|fim_pad|>", "<|file_sep|>", "<|file_separator|>", "<|repo_name|>", "<file_sep>", "<fim_pad>",
    "<|EOT|>", "▁<EOT>", "<｜end▁of▁sentence｜>",
)  # fmt: skip
_ANCHOR = "\n"  # what is encoded behind it has no blank of the tokenizer's own in front


@dataclass(frozen=True)
class Infilling:
    """How one tokenizer fills in: the ids of its marks, and of what ends a middle. ``middle`` is None of Mistral's."""

    before: int
    behind: int
    middle: int | None
    ends: tuple[int, ...]

    def ids(self, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """The prompt for what stands between ``prefix`` and ``suffix``."""
        if self.middle is None:
            return [self.behind, *suffix, self.before, *prefix]
        return [self.before, *prefix, self.behind, *suffix, self.middle]


def find_infilling(text: TextProcessor, vocab_size: int) -> Infilling | None:
    """How a tokenizer, with ids below ``vocab_size``, fills in; None where it does not."""

    def known(token: str) -> int | None:
        found = text.token_id(token)
        return found if found is not None and found < vocab_size else None

    for form in _FORMS:
        ids = [known(token) for token in form if token]
        before, behind, *middle = ids
        if before is None or behind is None or None in middle:
            continue
        marks = [token_id for token_id in ids if token_id is not None]
        ends = [token_id for token_id in map(known, _ENDS) if token_id is not None]
        return Infilling(before, behind, middle[0] if middle else None, tuple(dict.fromkeys([*marks, *ends])))
    return None


def encode_behind(text: TextProcessor, suffix: str) -> list[int]:
    """The tokens of ``suffix``, which begins no text."""
    anchor = text.encode(_ANCHOR, add_special_tokens=False)
    ids = text.encode(_ANCHOR + suffix, add_special_tokens=False)
    if ids[: len(anchor)] == anchor:
        return ids[len(anchor) :]
    return text.encode(suffix, add_special_tokens=False)
