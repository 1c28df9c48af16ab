"""Writes docs/families.md from what the tests measure: ``python -m tests.server.model.families.table``."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import tempfile
import warnings
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from tests.server.model.families.catalog import FAMILIES, PATCHED, model_type_of
from tests.server.model.families.sweep import measure

PAGE = Path(__file__).parents[4] / "docs" / "families.md"
KINDS = ("base", "LoRA", "prefix", "prompt", "expert LoRA")
TEXT = """\
# Model families

Written by `make families` from `tests/server/model/families`; do not edit.

A tiny random model of each architecture runs through the whole engine in fp32: base rows, LoRA on all linear maps,
prefix tuning and prompt tuning, on routed experts also LoRA of the experts, mixed in one batch, with chunked prefill,
decode, and a second run out of the prefix cache. The figure is the largest difference of a log-probability, over
every token and the whole vocabulary, from transformers and peft running that adapter alone; the numbers are of
magnitude 6, and one rounding of such a number is 5e-07.

{table}

*patched*: the architecture does not attend through transformers' `AttentionInterface`; a file in
`server/model/families/` brings its attention onto the paged cache.

{notes}

Prompts here stay inside the sliding windows, which peft's own prefix cache ignores. Windows shorter than the prompt,
with attention sinks and capped logits, are tested for base and LoRA rows in `test_windows.py`; expert LoRA in its many
forms in `test_experts.py`.

## Other architectures

An architecture that is not in the table is served when all its layers attend through `AttentionInterface`, and a short
prompt packed beside another and cut into chunks gives what transformers gives for it alone; this is tried when the
server starts. Otherwise the server does not start and says why. Not served are state-space and hybrid models, models
that read images or sound, and encoder-decoder models other than T5.

Code that comes with a model runs only with `--trust-remote-code`. A decoder of that kind is computed like any other
where its layers attend through `AttentionInterface` and the same trial succeeds, with a prefix too. Where it attends by
itself, counts positions in its own way, or needs more of a sequence's past than keys and values (localized filtering,
as in Yuan2), its own code runs alone, one sequence at a time: every row is what transformers and peft compute for it,
and requests share a step but no product. The next token goes on from the cache that the code makes, where that gives
what computing all tokens again gives; else all are computed again. ChatGLM2's and Yuan2's manner are tested so, with
code written for the tests.
"""


def render(measured: dict[str, dict[str, float]]) -> str:
    """The page for the figures ``measured`` by family and kind."""
    rows = ["| family | | " + " | ".join(KINDS) + " |", "|---|---|" + "---:|" * len(KINDS)]
    for name, figures in measured.items():
        cells = [f"{figures[kind]:.0e}" if kind in figures else "–" for kind in KINDS]
        rows.append(f"| {name} | {'patched' if model_type_of(name) in PATCHED else ''} | {' | '.join(cells)} |")
    notes = "\n".join(
        f"{name} has no prefix figure: {family.no_prefix}." for name, family in FAMILIES.items() if family.no_prefix
    )
    return TEXT.format(table="\n".join(rows), notes=notes)


def families_listed(page: str) -> list[str]:
    """The families in the table of ``page``."""
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    return rows[1:]


def main() -> None:
    """Measure everything and write the page."""
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as root:
        measured = {name: measure(name, Path(root) / name) for name in FAMILIES}
    PAGE.write_text(render(measured))


if __name__ == "__main__":
    main()
