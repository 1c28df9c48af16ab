"""Where in a prompt an adapter that waits for its invocation becomes active."""

from __future__ import annotations

from collections.abc import Sequence

from server.model.inputs import NEVER


def activation_start(prompt_ids: Sequence[int], invocation_tokens: Sequence[int]) -> int:
    """The position in the prompt from which on an adapter acts.

    Activated LoRA (Greenewald et al., 2025, https://arxiv.org/abs/2504.12397): where the last of its invocations
    begins, ``NEVER`` when the prompt has none (outputs do not count, as in peft). 0 for adapters without invocation.
    """
    wanted = list(invocation_tokens)
    if not wanted:
        return 0
    for start in range(len(prompt_ids) - len(wanted), -1, -1):
        if prompt_ids[start] == wanted[0] and list(prompt_ids[start : start + len(wanted)]) == wanted:
            return start
    return NEVER
