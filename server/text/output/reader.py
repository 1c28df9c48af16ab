"""Reads a text that comes in pieces as if it were all there: what needs more of it waits.

Readers are coroutines: ``name = yield from reader.word(...)`` goes on when there is enough text to tell. What they
return depends on the text alone, however it was cut, as they look at nothing but the next characters, one by one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Wait = Generator[None, None, T]
MAX_UNDECIDED_CHARS = 8192  # that may be a call or not
SPACES = " \t\r\n"


class NoMatchError(Exception):
    """The text is not what was looked for."""


class Reader:
    """A text, and how far it has been read. After ``mark`` it can be read again from there, until ``keep``."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._mark: int | None = None
        self.ended = False
        self.taken = 0  # characters in all

    def feed(self, text: str) -> None:
        """More of the text."""
        done = self._at if self._mark is None else self._mark
        self._text = self._text[done:] + text
        self._at -= done
        if self._mark is not None:
            self._mark = 0

    @property
    def rest(self) -> str:
        """What has come and was not read."""
        return self._text[self._at :]

    def take(self, count: int) -> str:
        """Read ``count`` characters that have come."""
        self._at += count
        self.taken += count
        return self._text[self._at - count : self._at]

    def mark(self) -> None:
        """Here is where it may have to be read again."""
        self._mark = self._at

    @property
    def is_marked(self) -> bool:
        """Whether there is something to be read again."""
        return self._mark is not None

    def keep(self) -> None:
        """What was read since the mark is settled."""
        self._mark = None

    def rewind(self) -> None:
        """Back to the mark."""
        assert self._mark is not None
        self.taken -= self._at - self._mark
        self._at, self._mark = self._mark, None

    def peek(self) -> Wait[str]:
        """The next character; empty at the end. Raises NoMatchError when too much is undecided."""
        while self._at == len(self._text) and not self.ended:
            yield
        if self._mark is not None and self._at - self._mark > MAX_UNDECIDED_CHARS:
            raise NoMatchError
        return self._text[self._at : self._at + 1]

    def more(self) -> Wait[str]:
        """What has come, at least one character; empty at the end."""
        yield from self.peek()
        return self.rest

    def literal(self, text: str) -> Wait[bool]:
        """Read ``text`` if it comes next."""
        while text.startswith(self.rest) and len(self.rest) < len(text) and not self.ended:
            yield
        if not self._text.startswith(text, self._at):
            return False
        self.take(len(text))
        return True

    def expect(self, *texts: str) -> Wait[None]:
        """Read one of ``texts``. Raises NoMatchError."""
        for text in texts:
            if (yield from self.literal(text)):
                return
        raise NoMatchError

    def spaces(self, those: str = SPACES) -> Wait[str]:
        """Read white space."""
        read = ""
        while (char := (yield from self.peek())) and char in those:
            read += self.take(1)
        return read

    def word(self, wanted: Callable[[str], bool]) -> Wait[str]:
        """Read the characters that are ``wanted``."""
        read = ""
        while (char := (yield from self.peek())) and wanted(char):
            read += self.take(1)
        return read

    def until(self, stops: tuple[str, ...]) -> Wait[str]:
        """Read up to the first of ``stops`` and that; what stands before it. Raises NoMatchError at the end."""
        read = ""
        while True:
            for stop in stops:
                if (yield from self.literal(stop)):
                    return read
            if not (yield from self.peek()):
                raise NoMatchError
            read += self.take(1)

    def streamed(self, stops: tuple[str, ...], pass_on: Callable[[str], None]) -> Wait[str]:
        """Read up to the first of ``stops`` and that, and pass on what stands before it as it comes.

        Which of them it was; empty at the end.
        """
        while text := (yield from self.more()):
            found = [(text.find(stop), stop) for stop in stops if stop in text]
            at, stop = min(found, default=(-1, ""))
            kept = 0 if found or self.ended else held(text, stops)
            said = text[: at if found else len(text) - kept]
            pass_on(said)
            self.take(len(said) + len(stop))
            if found:
                return stop
            while kept and len(self.rest) == kept and not self.ended:
                yield
        return ""

    # ---- JSON ----

    def json_string(self) -> Wait[str]:
        """Read a string. Raises NoMatchError."""
        yield from self.expect('"')
        read, escaped, char = '"', False, ""
        while escaped or char != '"':
            escaped = char == "\\" and not escaped
            if not (char := (yield from self.peek())):
                raise NoMatchError
            read += self.take(1)
        try:
            decoded = json.loads(read, strict=False)
        except ValueError:
            raise NoMatchError from None
        return str(decoded)

    def json_value(self, pass_on: Callable[[str], None]) -> Wait[None]:
        """Read an object, a list or a plain value, and pass it on as it comes: no more is checked than where it ends.

        At the end of the text it ends too. Raises NoMatchError where there is none.
        """
        depth, quoted, escaped = 0, False, False
        begun = False
        while text := (yield from self.more()):
            for count, char in enumerate(text, 1):
                if quoted:
                    quoted, escaped = escaped or char != '"', char == "\\" and not escaped
                elif not depth and begun and char in ',}]; \n\t\r"':
                    pass_on(self.take(count - 1))  # behind a plain value
                    return
                elif char == '"':
                    quoted = True
                elif char in "{[":
                    depth += 1
                elif char in "}]":
                    if not depth:
                        raise NoMatchError
                    depth -= 1
                begun = True
                if not depth and not quoted and char in '"}]':
                    pass_on(self.take(count))
                    return
            pass_on(self.take(len(text)))

    def json_text(self) -> Wait[str]:
        """Read a value whole. Raises NoMatchError where it is none."""
        pieces: list[str] = []
        yield from self.json_value(pieces.append)
        text = "".join(pieces)
        try:
            json.loads(text, strict=False)
        except (ValueError, RecursionError):
            raise NoMatchError from None
        return text


def held(text: str, marks: tuple[str, ...]) -> int:
    """How many characters at the end of ``text`` may be the beginning of one of ``marks``."""
    longest = min(max(map(len, marks)) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if any(mark.startswith(text[-n:]) for mark in marks)), 0)
