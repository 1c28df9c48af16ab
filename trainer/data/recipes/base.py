"""What a recipe is: how one published data set becomes rows to train and to be scored on.

Fields of a row (all but the first ones only where a metric needs them):

    prompt, response   text; or instead of both
    messages           list of turns, {"role", "content"} or ShareGPT's {"from", "value"} (toolcall)
    tools              the functions that its assistant may call, as JSON text (toolcall)
    labels             list of text: every label that an answer can be (banking77, clinc150, emotion)
    sqlite             path of the database that the SQL is executed on (geography)
    references         list of text: every right response to this prompt (e2e_nlg)
    answer             the number at the end of the solution (gsm8k)
    entry_point, test  the function to write and the code that checks it (humaneval)

Responses of entity sets (wnut17, resume_ner) are one JSON object: type to the texts found, in order of appearance.
Those of snips are ``{"intent": name, "slots": {name: value}}``.

Rows come in one fixed order in which neighbours are of different classes, so that the first hundred are a fair sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.errors import DataError

Split = Literal["train", "validation", "test"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """One data set. ``read`` yields the rows of a split of ``splits``; ``metrics`` are names of trainer.evaluation.

    ``added_tokens`` are the special tokens that its responses are written with.
    """

    name: str
    summary: str
    read: Callable[[Path, Split], Iterator[Row]]
    splits: tuple[Split, ...]
    metrics: tuple[str, ...]
    system_prompt: str | None = None
    added_tokens: tuple[str, ...] = ()

    def rows(self, folder: Path, split: Split) -> Iterator[Row]:
        """The rows of ``split`` of the set in ``folder``. DataError naming file and line where it is broken."""
        if not folder.is_dir():
            raise DataError(
                f"data.path {folder} is no folder; recipe {self.name} reads a folder with the files of the set"
            )
        if split not in self.splits:
            raise DataError(f"recipe {self.name} has no {split} rows; it has {', '.join(self.splits)}")
        return self.read(folder, split)
