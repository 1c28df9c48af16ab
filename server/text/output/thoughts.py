"""Thoughts before an answer: how bases mark them, and what takes them out of an output.

An output may begin with a mark, or the prompt has it already; one that is cut inside its thoughts has no answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from typing_extensions import override

from server.text.output.parts import MessageParser, Part, ReasoningDelta
from server.text.output.reader import Reader, Wait


@dataclass(frozen=True)
class ThoughtMarks:
    """What stands around thoughts. ``begun``: they are there without the first mark, whatever the prompt says."""

    starts: tuple[str, ...]
    end: str
    begun: bool = False

    def begun_by(self, prompt: str) -> bool:
        """Whether the answer to ``prompt`` begins inside thoughts."""
        said = prompt.rstrip()
        return said.endswith(self.starts) or (self.begun and not said.endswith(self.end))

    def left_open_by(self, said: str) -> bool:
        """Whether an answer that goes on with ``said`` does so inside thoughts."""
        return max(map(said.rfind, self.starts)) > said.rfind(self.end)


_THINK = ThoughtMarks(("<think>",), "</think>")
_GRANITE = ThoughtMarks(("Here is my thought process:", "Here's my thought process:"), "Here is my response:")
MARKS: dict[str, ThoughtMarks] = {
    "think": _THINK,
    "qwen3": _THINK,
    "deepseek_r1": ThoughtMarks(_THINK.starts, _THINK.end, begun=True),
    "deepseek_v3": _THINK,
    "glm45": _THINK,
    "mistral": ThoughtMarks(("[THINK]",), "[/THINK]"),
    "granite": _GRANITE,
    "seed_oss": ThoughtMarks(("<seed:think>",), "</seed:think>"),
    "cohere": ThoughtMarks(("<|START_THINKING|>",), "<|END_THINKING|>"),
    "gpt_oss": ThoughtMarks(("<|channel|>analysis<|message|>",), "<|end|>"),
}
_TOLD_BY = {"<|channel|>analysis<|message|>": "gpt_oss", "[THINK]": "mistral", "<seed:think>": "seed_oss",
            "<|START_THINKING|>": "cohere",
            "Here is my thought process:": "granite", "</think>": "think", "<think>": "think"}  # fmt: skip


def find_marks(template: str) -> ThoughtMarks | None:
    """Those that a chat template writes or looks for, if any."""
    return next((MARKS[name] for mark, name in _TOLD_BY.items() if mark in template), None)


class ThoughtParser(MessageParser):
    """Takes thoughts out, and leaves what comes behind them to ``inner``. White space around thoughts is lost.

    ``begun``: the output begins inside them.
    """

    def __init__(self, marks: ThoughtMarks, inner: MessageParser, *, begun: bool) -> None:
        self._marks = marks
        self._inner = inner
        self._reader = Reader()
        self._out: list[Part] = []
        self._inside = begun
        self._reading = self._read(begun)
        self.thought_chars, self.thinking = 0, True
        next(self._reading)

    @override
    def feed(self, text: str) -> list[Part]:
        if not self.thinking:
            return self._inner.feed(text)
        self._reader.feed(text)
        return self._go_on()

    @override
    def finish(self) -> list[Part]:
        parts: list[Part] = []
        if self.thinking:
            self._reader.ended = True
            parts = self._go_on()
        return parts + self._inner.finish()

    def _go_on(self) -> list[Part]:
        try:
            next(self._reading)
        except StopIteration:
            self.thinking = False
            rest = self._reader.rest
            self._out += self._inner.feed(self._reader.take(len(rest))) if rest else []
        if self._inside:
            self.thought_chars = self._reader.taken + (len(self._reader.rest) if self.thinking else 0)
        out, self._out = self._out, []
        return out

    def _read(self, begun: bool) -> Wait[None]:
        """Up to the answer. The first step is empty."""
        yield
        reader = self._reader
        reader.mark()
        yield from reader.spaces()
        for start in self._marks.starts:
            if (yield from reader.literal(start)):
                break
        else:
            if not begun:
                reader.rewind()
                return
        reader.keep()
        self._inside = True
        yield from self._thoughts()
        self.thought_chars, self._inside = reader.taken, False
        yield from reader.spaces()

    def _thoughts(self) -> Wait[None]:
        yield from think(self._reader, (self._marks.end,), self._think)

    def _think(self, thought: ReasoningDelta) -> None:
        self._out.append(thought)


def think(reader: Reader, ends: tuple[str, ...], put: Callable[[ReasoningDelta], None]) -> Wait[None]:
    """Read thoughts up to one of ``ends``. White space around them is lost."""
    gap = ""

    def pass_on(text: str) -> None:
        nonlocal gap
        if body := text.rstrip():
            put(ReasoningDelta(gap + body))
            gap = ""
        gap += text[len(body) :]

    yield from reader.spaces()
    yield from reader.streamed(ends, pass_on)
