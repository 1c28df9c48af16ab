"""Calls of tools in an output: what all formats share.

A format says how a call may begin, and reads one. What turns out to be none, or calls what is no tool, is content; from
where a call's name is known its arguments are passed on as they come, and it cannot be taken back.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from server.text.output.parts import ContentDelta, MessageParser, Part, ToolCallBegin, ToolCallDelta
from server.text.output.reader import NoMatchError, Reader, Wait


@dataclass(frozen=True)
class CallOptions:
    """Which tools there are, by name with the JSON schemas of their arguments, and how calls of them are told.

    Without ``parallel`` only the first call is. An output that is ``forced`` to call has no content: what of it is no
    call is one that was cut before it said its name. ``thoughts`` are told apart by formats that have
    them.
    """

    schemas: Mapping[str, Mapping[str, Any]]
    make_id: Callable[[], str]
    parallel: bool = True
    forced: bool = False
    thoughts: bool = True


class CallParser(MessageParser):
    """One output with calls. White space beside calls is lost.

    ``openers``: what a call may begin with; one of ``line_openers`` only at the beginning of a line.
    """

    thought_chars, thinking = 0, False
    openers: tuple[str, ...] = ()
    line_openers: tuple[str, ...] = ()

    def __init__(self, options: CallOptions) -> None:
        self.options = options
        self._firsts = {opener[0] for opener in (*self.openers, *self.line_openers)}
        self.reader = Reader()
        self._out: list[Part] = []
        self._calls = 0
        self._called = self._behind_call = False  # this call is one; the last thing was one
        self._said, self._gap = False, ""  # there is content; white space behind it, which more may follow
        self._blank_line = True
        self._reading = self._read()
        next(self._reading)

    @override
    def feed(self, text: str) -> list[Part]:
        self.reader.feed(text)
        return self._go_on()

    @override
    def finish(self) -> list[Part]:
        self.reader.ended = True
        return self._go_on()

    def _go_on(self) -> list[Part]:
        next(self._reading, None)
        out, self._out = self._out, []
        return out

    # ---- for formats ----

    @abstractmethod
    def call(self) -> Wait[None]:
        """Read a call, or several, from its opener on. Raises NoMatchError where it is none."""

    def schema(self, name: str) -> Mapping[str, Any]:
        """The schema of the arguments of a tool. Raises NoMatchError where there is no such tool."""
        if name not in self.options.schemas:
            raise NoMatchError
        return self.options.schemas[name]

    def begin(self, name: str) -> None:
        """It is a call of the tool ``name``. Raises NoMatchError where there is no such tool."""
        self.schema(name)
        self.reader.keep()
        self._called = self._behind_call = True
        if not self._said:
            self._gap = ""
        self._calls += 1
        if self._is_told:
            self._out.append(ToolCallBegin(self._calls - 1, self.options.make_id(), name))

    def argue(self, text: str) -> None:
        """Pass on more of the call's arguments."""
        if text and self._is_told:
            last = self._out[-1] if self._out else None
            if isinstance(last, ToolCallDelta):
                text = last.arguments + text
                self._out.pop()
            self._out.append(ToolCallDelta(self._calls - 1, text))

    @property
    def _is_told(self) -> bool:
        return self.options.parallel or self._calls == 1

    # ---- the whole output ----

    def _read(self) -> Wait[None]:
        """The first step is empty."""
        yield
        while (yield from self._content()):
            self.reader.mark()
            self._called = False
            try:
                yield from self.call()
                self.reader.keep()
            except NoMatchError:
                if self.reader.is_marked:
                    self.reader.rewind()
            if self._called:
                self._blank_line = True
            else:
                self._say(self.reader.take(1))
        if not self._behind_call:
            self._put(self._gap)

    def _content(self) -> Wait[bool]:
        """Read content, up to where a call may begin; False at the end."""
        while text := (yield from self.reader.more()):
            at = next((i for i, char in enumerate(text) if char in self._firsts and self._may_open(text, i)), None)
            self._say(self.reader.take(len(text) if at is None else at))
            if at is not None:
                return True
        return False

    def _may_open(self, text: str, at: int) -> bool:
        def opens(opener: str) -> bool:
            return text.startswith(opener, at) or opener.startswith(text[at:])

        if any(map(opens, self.openers)):
            return True
        _, newline, line = text[:at].rpartition("\n")
        return (bool(newline) or self._blank_line) and not line.strip() and any(map(opens, self.line_openers))

    def _say(self, text: str) -> None:
        """Content; white space waits for more."""
        line = text.rpartition("\n")
        self._blank_line = (bool(line[1]) or self._blank_line) and not line[2].strip()
        if self._behind_call:
            text = text.lstrip()
        body = text.rstrip()
        if body:
            self._put(self._gap + body)
            self._said, self._gap, self._behind_call = True, "", False
        self._gap += text[len(body) :]

    def _put(self, text: str) -> None:
        if not text or self.options.forced:
            return
        if self._out and isinstance(last := self._out[-1], ContentDelta):
            text = last.text + text
            self._out.pop()
        self._out.append(ContentDelta(text))
