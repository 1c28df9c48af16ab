"""The training data of one run: read, split, rendered, tokenised to disk, and accounted for in words."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import msgspec

from trainer.config.data import DataConfig
from trainer.data.conversations import TEXT, ConversationReader, DroppedRow, ParsedRow, read_row
from trainer.data.disk import Examples, TokenQuestions
from trainer.data.encoding import Example, RowEncoder
from trainer.data.messages import Question, TokenQuestion, last_answer, said_in_text
from trainer.data.rendering import BASE, NONE, is_foreign, template_name, tool_form, with_tool_form
from trainer.data.rows import RawRow
from trainer.data.sources import find_test_source, with_recipe
from trainer.data.splits import (
    PROGRESS_EVERY,
    DatasetSplits,
    Indices,
    Progress,
    RowSplit,
    Survey,
    describe_dropped,
    find_splits,
    find_validation,
    held_back_again,
    nothing_left,
    rows_at,
    survey,
)
from trainer.files import SERVED_TEMPLATE
from trainer.recipes.recipe import Split
from trainer.tables import counted

_TOO_LONG = {
    "drop": "left out",
    "cut_start": "cut at the start",
    "cut_end": "cut at the end",
    "split": "split into several",
}


def notes_of(
    config: DataConfig,
    surveys: Sequence[Survey[ConversationReader]],
    *,
    foreign: bool,
    stray_tail: str,
    insert: str,
    dropped: Mapping[str, int],
    cut: Mapping[str, int],
    empty: int,
    split: RowSplit,
    shared: int,
) -> tuple[str, ...]:
    """One line for each thing that people should know of the data.

    ``foreign``: the template is not the base's. ``stray_tail``: what it writes after an answer, where that ends no
    turn; ``insert``: what it writes before one, and no prompt holds. ``empty`` rows hold answers that say nothing,
    ``shared`` validation rows are training rows as well.
    """
    notes = [f"{one.source.name}: {counted(one.rows)} of the shape {one.reader.layout}" for one in surveys]
    notes += [_template_note(config, surveys, foreign), _truncation_note(config)]
    if stray_tail:
        notes.append(
            f"warning: the template ends answers with {stray_tail!r}, which no token of this base ends a turn with: "
            "it becomes part of every answer; choose a template of this base's markers"
        )
    if insert:
        notes.append(
            f"the template writes {insert!r} before an answer, which no prompt of a server holds: it is left out, and "
            "answers begin with their content"
        )
    if cut:
        notes.append("cut: " + "; ".join(f"{counted(count)} at data.{key}" for key, count in sorted(cut.items())))
    if dropped:
        notes.append(f"left out {describe_dropped(dict(dropped))}")
    if empty:
        notes.append(f"not learned: empty answers, in {counted(empty)}")
    if split.redrawn:
        notes.append(
            f"no row that was drawn to validate on can be used: {counted(len(split.validation))} drawn in their place"
        )
    if split.repeated:
        kept = "left out" if config.duplicates == "drop" else "kept; data.duplicates: drop leaves them out"
        notes.append(f"repeated: {counted(split.repeated)} ({kept})")
    if shared:
        notes.append(f"warning: {counted(shared)} to validate on and to train on as well")
    return tuple(notes)


def _template_note(config: DataConfig, surveys: Sequence[Survey[ConversationReader]], foreign: bool) -> str:
    if all(one.reader.layout.shape == "text" for one in surveys):
        return "no template: the rows are plain text, all of which is learned"
    learned = {"all_answers": "every answer", "last_answer": "the last answer", "everything": "all text"}
    what = f"{learned[config.learn]} of a row is learned"
    if config.template == NONE:
        return f"no template: prompt and response are joined as they are, for /v1/completions; {what}"
    if config.template == BASE:
        return f"template: the base's own; {what}"
    name = template_name(config)
    if not foreign:
        return f"template: {name}, which is the base's own; {what}"
    return (
        f"warning: template {name} is not the base's; serve it with --chat-template OUTPUT/{SERVED_TEMPLATE} "
        f"(other servers refuse the adapter); {what}"
    )


def _truncation_note(config: DataConfig) -> str:
    parts = []
    if config.max_prompt_length:
        parts.append(f"prompts above {config.max_prompt_length} tokens lose old turns, then their end")
    if config.max_response_length:
        parts.append(f"responses above {config.max_response_length} tokens lose their end")
    parts.append(f"rows above {config.max_length} tokens are {_TOO_LONG[config.too_long]}")
    return "; ".join(parts)


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on.

    ``dropped`` counts rows by reason, ``cut`` rows by the limit at which something of them was cut off; ``sha256`` is
    over the files' bytes; ``notes`` say in words what was made of the data. ``questions`` is empty for plain text.
    ``tools`` is how functions and calls were written, None where there were none.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    questions: Sequence[TokenQuestion]
    sha256: str
    dropped: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tools: Literal["text", "template"] | None = None


def split_conversations(
    config: DataConfig, seed: int, progress: Progress | None = None
) -> DatasetSplits[ConversationReader]:
    """The rows that supervised training as ``config`` says trains and validates on. Raises DataError in one line.

    Their configuration is what is to be made of them: where all are plain text, no base needs a chat template.
    """
    config = with_recipe(config)
    splits = find_splits(config, seed, partial(ConversationReader, config), progress)
    if config.template == BASE and all(one.reader.layout.shape == TEXT for one in splits.surveys):
        return replace(splits, config=msgspec.structs.replace(config, template=NONE))
    return splits


def fitting(
    splits: DatasetSplits[ConversationReader], rows: RowEncoder, seed: int
) -> DatasetSplits[ConversationReader]:
    """``splits`` with a row to validate on that ``rows`` can encode, where there is one."""

    def can_use(parsed: ParsedRow) -> bool:
        try:
            return bool(rows.encode(parsed).examples)
        except DroppedRow:
            return False

    return held_back_again(splits, seed, can_use)


def load_data(
    config: DataConfig, tokenizer: Any, end_ids: Sequence[int], seed: int, progress: Progress | None = None
) -> TrainingData:
    """Read, split, render and tokenise. Raises DataError in one line for everything that cannot be trained on."""
    splits = split_conversations(with_tool_form(with_recipe(config), tokenizer), seed, progress)
    config = splits.config
    rows = RowEncoder(config, tokenizer, end_ids)
    splits = fitting(splits, rows, seed)
    tokens = _RowTokenizer(rows, splits, progress)
    train, validation, questions = Examples(), Examples(), TokenQuestions()
    tokens.encode("train", splits.training_source, splits.split.train, train)
    if config.validation:
        tokens.encode("validation", *splits.validating, validation, questions)
    hashes = "".join(one.source.sha256 for one in splits.surveys)
    dropped = sum((one.dropped for one in splits.surveys), tokens.dropped)
    return TrainingData(
        train=train,
        validation=validation,
        questions=questions,
        sha256=hashlib.sha256(hashes.encode()).hexdigest(),
        dropped=dict(dropped),
        cut=dict(tokens.cut),
        tools=tool_form(config) if any(one.reader.with_tools for one in splits.surveys) else None,
        notes=notes_of(
            config,
            splits.surveys,
            foreign=is_foreign(config, tokenizer),
            stray_tail=rows.stray_tail,
            insert=rows.renderer.insert,
            dropped=dropped,
            cut=tokens.cut,
            empty=tokens.empty,
            split=splits.split,
            shared=len(splits.overlapping),
        ),
    )


def load_questions(
    config: DataConfig, seed: int, split: Literal["validation", "test"], rows: RowEncoder | None = None
) -> list[Question]:
    """The rows that training with ``seed`` holds back, or those of ``data.test``, as questions to a server.

    Rows that training left out because of their tokens alone (too long) are asked too. ``rows`` knows how the base
    writes an answer's thought; without it references are as the data has them. Raises DataError.
    """
    config = with_recipe(config)
    if rows is not None:
        config = msgspec.structs.replace(config, tools=rows.tools)
    if split == "test":
        found = survey(find_test_source(config), ConversationReader(config), part="test")
        indices = found.usable
    else:
        found, indices = find_validation(config, seed, partial(ConversationReader, config))
    return [_question(row, parsed, found.reader, config, rows) for row, parsed in rows_at(found, indices)]


class _RowTokenizer:
    """Tokenises rows to disk, and counts what it drops and cuts."""

    def __init__(self, rows: RowEncoder, splits: DatasetSplits[ConversationReader], progress: Progress | None) -> None:
        self._rows, self._splits, self._progress = rows, splits, progress
        self.dropped: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.empty = 0  # rows with an answer that says nothing

    def encode(
        self,
        part: Split,
        found: Survey[ConversationReader],
        indices: Indices,
        examples: Examples,
        questions: TokenQuestions | None = None,
    ) -> None:
        """Append the rows of ``found`` at ``indices``, of ``part``. Raises DataError when none of them is usable."""
        mine: Counter[str] = Counter()
        what = f"tokenising {found.source.name}"
        for done, (_row, parsed) in enumerate(rows_at(found, indices)):
            if self._progress and done % PROGRESS_EVERY == 0:
                self._progress(what, done, len(indices))
            try:
                self._one(parsed, examples, questions)
            except DroppedRow as reason:
                mine[str(reason)] += 1
        if self._progress:
            self._progress(what, len(indices), len(indices))
        if not len(examples):
            raise nothing_left(found.source.name, mine + self._splits.dropped_of(part), part)
        self.dropped.update(mine)

    def _one(self, parsed: ParsedRow, examples: Examples, questions: TokenQuestions | None) -> None:
        encoded = self._rows.encode(parsed)
        if questions is not None and parsed.conversation[0].role != TEXT:
            questions.append(self._rows.question(parsed))
        for example in encoded.examples:
            examples.append(example)
        self.cut.update(set(encoded.cut))
        self.empty += parsed.empty_answers > 0


def _question(
    row: RawRow, parsed: ParsedRow, reader: ConversationReader, config: DataConfig, rows: RowEncoder | None
) -> Question:
    conversation = parsed.conversation
    if conversation[0].role == TEXT:
        return Question(None, "", conversation[0].content, row.values)
    last = last_answer(conversation)
    reference = said_in_text(conversation[last])
    if rows and not conversation[last].calls:
        with suppress(DroppedRow):  # the server refuses it, too, and will say so
            reference = rows.reference(conversation, parsed.tools)
    if config.template == "none":
        return Question(None, conversation[last - 1].content, reference, row.values)
    if not parsed.with_tools:
        return Question(conversation[:last], None, reference, row.values)
    sent = read_row(
        row, reader.layout, msgspec.structs.replace(config, tools="template")
    )  # a server writes them itself
    asked = sent.conversation[: last_answer(sent.conversation)]
    return Question(asked, None, reference, row.values, tools=sent.tools)
