"""Rows of preference data, in the shapes people have them, to prompts and answers. Knows neither tokens nor templates.

Pairs: ``prompt``, ``chosen``, ``rejected`` as texts, messages or lists of messages; or a conversation (``messages``,
``conversations``) with ``chosen`` and ``rejected`` to follow it; or two whole conversations, with a prompt or without.
Judgements: ``prompt``, ``completion`` and ``label``; or a conversation that ends with the answer, and ``label``.
Each row may have another of these shapes, with ``system``, ``history``, ``tools`` and ``input`` as in supervised data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainer.config.data import DataConfig
from trainer.config.preference import PreferenceColumns
from trainer.data.conversations import Cells, DroppedRow, joined, missing_column, some_columns
from trainer.data.messages import (
    ASSISTANT,
    Conversation,
    Message,
    messages_of,
    named,
    pairs_of,
    spelled_usually,
    tools_of,
    with_system,
    with_tools_as,
)
from trainer.data.rows import RawRow
from trainer.errors import DataError
from trainer.preference.prompts import as_chat, same_messages, whole_prompt

_PROMPTS = ("prompt", "instruction", "question")  # found without being named in data.columns, as are
_CONVERSATIONS = ("messages", "conversations")
_USUAL = {
    "auto": (*_PROMPTS, *_CONVERSATIONS), "messages": ("messages",), "sharegpt": ("conversations",),
    "prompt_response": ("prompt",), "prompt_completion": ("prompt",), "alpaca": ("instruction",),
}  # fmt: skip
_BESIDE = ("system", "history", "tools")  # columns called what they are
_LABELS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, the first of them preferred; ``tools`` as in ParsedRow."""

    prompt: Conversation
    chosen: Message
    rejected: Message
    tools: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Judged:
    """One answer, judged good or bad; ``tools`` as in ParsedRow."""

    prompt: Conversation
    completion: Message
    good: bool
    tools: tuple[Any, ...] = ()


class ComparisonReader:
    """Reads rows by the names of their columns. ``seen`` are those that rows had, ``read`` those of them it read.

    ``with_tools``: there were functions or calls in some.
    """

    def __init__(self, config: DataConfig, answers: PreferenceColumns) -> None:
        self._config, self._columns, self._answers = config, config.columns, answers
        self.read: dict[str, None] = {}
        self.seen: dict[str, None] = {}
        self.with_tools = False

    def pair(self, row: RawRow) -> Pair:
        """The pair in ``row``. DataError for wrong columns and types. Raises DroppedRow."""
        names = self._answers
        cells = self._cells(row)
        chosen, rejected = (self._answer(row, name) for name in (names.chosen, names.rejected))
        chats = (chosen[:-1], rejected[:-1])
        if all(chats) and not same_messages(*chats):
            raise DroppedRow("chosen and rejected differ before the last answer")
        before = self._before(cells, chats[0] or chats[1])
        prompt, other = (self._prompt(before, chat, [chosen[-1], rejected[-1]]) for chat in chats)
        if prompt is None or other is None:
            raise DroppedRow("chosen and rejected do not begin with the prompt, nor follow on it")
        if prompt != other:
            raise DroppedRow("chosen and rejected differ before the last answer")
        if chosen[-1] == rejected[-1]:
            raise DroppedRow("chosen and rejected are the same")
        prompt, tools = self._complete(cells, prompt)
        return Pair(prompt, self._written(chosen[-1]), self._written(rejected[-1]), tools)

    def judged(self, row: RawRow) -> list[Judged]:
        """The judgement in ``row``, or the two in a pair. Errors as in ``pair``."""
        names = self._answers
        label = row.values.get(names.label)
        if label is None and all(row.values.get(name) is not None for name in (names.chosen, names.rejected)):
            pair = self.pair(row)
            return [
                Judged(pair.prompt, answer, good, pair.tools)
                for answer, good in ((pair.chosen, True), (pair.rejected, False))
            ]
        cells = self._cells(row)
        self._note(row, [names.label])
        good = _label(f"{row.where}: {names.label!r}", self._cell(row, names.label))
        answer = self._completion(cells)
        before = self._before(cells, answer[:-1])
        if not answer:
            before, answer = self._parted(cells, before)
        whole = self._prompt(before, answer[:-1], [answer[-1]])
        if whole is None:
            raise DroppedRow(f"{names.completion!r} does not begin with the prompt, nor follow on it")
        prompt, tools = self._complete(cells, whole)
        return [Judged(prompt, self._written(answer[-1]), good, tools)]

    def prompt(self, row: RawRow) -> tuple[Conversation, tuple[Any, ...]]:
        """The prompt in ``row``, for answers that the model gives itself, and its tools. An answer at its end is left
        out.
        """
        cells = self._cells(row)
        before = self._before(cells, ())
        return self._complete(cells, before[:-1] if before[-1].role == ASSISTANT else before)

    def _cells(self, row: RawRow) -> Cells:
        """The cells of ``row`` beside its answers. DataError where it lacks a column that the configuration names."""
        named_columns = {role: getattr(self._columns, role) for role in (*_BESIDE, "prompt", "input", "messages")}
        columns = {role: name for role, name in named_columns.items() if name}
        for name in columns.values():
            self._cell(row, name)
        for role in _BESIDE:
            columns.setdefault(role, role)
        if "messages" not in columns and "prompt" not in columns:
            usual = [name for name in _USUAL[self._config.shape] if name in row.values]
            found = next((name for name in usual if row.values[name] is not None), usual[0] if usual else None)
            if found:
                columns["messages" if found in _CONVERSATIONS else "prompt"] = found
        if columns.get("prompt") == "instruction":
            columns.setdefault("input", "input")  # as in alpaca's data
        self._note(row, columns.values())
        return Cells(row, columns)

    def _note(self, row: RawRow, columns: Iterable[str]) -> None:
        self.read.update(dict.fromkeys(name for name in columns if name in row.values))
        self.seen.update(dict.fromkeys(row.values))

    def _before(self, cells: Cells, chat: Conversation) -> Conversation:
        """What stands before the answers, by the columns beside them, or else ``chat``, which an answer brings along.

        Raises DataError, or DroppedRow where it is empty.
        """
        history = pairs_of(cells.where("history"), cells.get("history"), self._config.roles)
        prompt = self._asked(cells) or chat
        if not prompt:
            raise self._no_prompt(cells)
        before = whole_prompt(history, prompt, self._config.prompt_prefix)
        if before is None:
            raise DroppedRow("the prompt does not follow on the history")
        return before

    def _asked(self, cells: Cells) -> Conversation:
        """The prompt in its own column; empty where there is none."""
        role = "messages" if "messages" in cells.columns else "prompt"
        value = self._chat(cells.where(role), cells.get(role))
        if role == "prompt" and isinstance(value, str):
            text = joined(value, cells.optional("input"))
            return (Message("user", self._config.prompt_prefix + text),) if text.strip() else ()
        if value is None:
            return ()
        if cells.optional("input"):
            raise DataError(f"{cells.where('input')} goes with a prompt that is text, not with messages")
        messages = self._messages(cells.where(role), value)
        opened = messages and messages[-1].role == ASSISTANT and not (messages[-1].content or messages[-1].calls)
        return messages[:-1] if opened else messages

    def _no_prompt(self, cells: Cells) -> DataError | DroppedRow:
        role = next((role for role in ("messages", "prompt") if role in cells.columns), None)
        if role:
            return DroppedRow("empty prompt" if cells.get(role) is not None else f"{cells.columns[role]!r} is null")
        found = some_columns(cells.row.values)
        advice = "name its column in data.columns.prompt or .messages"
        return DataError(f"{cells.row.where} has no prompt (found: {found}); {advice}")

    def _prompt(self, before: Conversation, chat: Conversation, answers: list[Message]) -> Conversation | None:
        if before and not chat and before[-1] in answers:
            return before[:-1]  # a whole conversation, and its answer once more
        return whole_prompt(before, chat, self._config.prompt_prefix)

    def _completion(self, cells: Cells) -> Conversation:
        """The answer that is judged, which may begin with its prompt; empty where the prompt's column ends with it."""
        beside = [name for name in _CONVERSATIONS if name not in cells.columns.values()]
        names = [name for name in (self._answers.completion, *beside) if cells.row.values.get(name) is not None]
        return self._answer(cells.row, names[0]) if names else ()

    def _parted(self, cells: Cells, whole: Conversation) -> tuple[Conversation, Conversation]:
        """A conversation that ends with the answer, and that."""
        if whole[-1].role == ASSISTANT:
            return whole[:-1], whole[-1:]
        where, completion = cells.row.where, self._answers.completion
        if completion in cells.row.values:
            raise DroppedRow(f"{completion!r} is null")
        raise DataError(f"{where} has no answer: neither a column {completion!r} nor an assistant's last message")

    def _answer(self, row: RawRow, name: str) -> Conversation:
        """The messages of an answer, the last of which is the assistant's."""
        where = f"{row.where}: {name!r}"
        self._note(row, [name])
        value = self._chat(where, self._cell(row, name))
        if value is None:
            raise DroppedRow(f"{name!r} is null")
        if isinstance(value, str):
            return (Message(ASSISTANT, value),)
        messages = self._messages(where, value)
        if not messages or messages[-1].role != ASSISTANT:
            raise DataError(f"{where} must end with a message of the assistant")
        return messages

    def _chat(self, where: str, value: Any) -> Any:
        return as_chat(where, value, dialogues=self._config.template != "none")

    def _messages(self, where: str, value: Any) -> Conversation:
        if not isinstance(value, (list, Mapping)):
            raise DataError(f"{where} must be text, a message or a list of messages, not {named(value)}")
        # nothing is excluded from being learned here: answers are compared as they are
        value = spelled_usually(where, value if isinstance(value, list) else [value], self._config.tags)
        messages = messages_of(where, value, self._config.roles)
        return tuple(replace(message, learned=True) for message in messages)

    def _complete(self, cells: Cells, prompt: Conversation) -> tuple[Conversation, tuple[Any, ...]]:
        """``prompt`` with its system message, and the tools that are left to the template."""
        prompt = with_system(prompt, cells.optional("system") or self._config.system_prompt)
        tools = tools_of(cells.where("tools"), cells.get("tools"))
        self.with_tools = self.with_tools or bool(tools) or any(message.calls for message in prompt)
        prompt, left = with_tools_as(self._config.tools, prompt, tools)
        return prompt, tuple(left)

    def _written(self, answer: Message) -> Message:
        self.with_tools = self.with_tools or bool(answer.calls)
        return with_tools_as(self._config.tools, (answer,), [])[0][0]

    def _cell(self, row: RawRow, name: str) -> Any:
        if name not in row.values:
            raise missing_column(row, name, "preference.columns or data.columns")
        return row.values[name]


def _label(where: str, value: Any) -> bool:
    if value is None:
        raise DroppedRow(f"{where.rpartition(': ')[2]} is null")
    if isinstance(value, bool):
        return value
    found = _LABELS.get(str(value).strip().lower())
    if found is None:
        raise DataError(f"{where} must be true or false, not {value!r}")
    return found
