"""Outputs of gpt-oss (harmony): messages, each with a channel and perhaps a function that it is to.

What is thought is in the channel ``analysis``, a call is a message to a function, and all else is content. An output
that names no channel is content, too: one that is held to a form, and those of adapters that have learned none.
"""

from __future__ import annotations

import re

from typing_extensions import override

from server.text.output.calls import CallOptions, CallParser
from server.text.output.parts import Part, ReasoningDelta
from server.text.output.reader import NoMatchError, Wait
from server.text.output.thoughts import think

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
_THOUGHTS = "analysis"
_NAMESPACE = "functions."


class ChannelParser(CallParser):
    """One output, its thoughts included. Only those that come first are counted."""

    def __init__(self, options: CallOptions) -> None:
        super().__init__(options)
        self.thinking = True
        self._inside = False  # thoughts that are counted

    @override
    def _go_on(self) -> list[Part]:
        out = super()._go_on()
        if self._inside:
            self.thought_chars = self.reader.taken + len(self.reader.rest)
        return out

    @override
    def call(self) -> Wait[None]:
        raise NotImplementedError  # a message may be one

    @override
    def _read(self) -> Wait[None]:
        yield
        yield from self._messages()
        if not self._behind_call:
            self._put(self._gap)

    def _messages(self) -> Wait[None]:
        reader = self.reader
        while (yield from reader.peek()):
            reader.mark()
            try:
                header = yield from self._header()
            except NoMatchError:
                if reader.ended:  # the output was cut inside it
                    return
                reader.rewind()
                header = ""
            reader.keep()
            yield from self._message(header)

    def _header(self) -> Wait[str]:
        """What is said of a message before it; empty where there is nothing. Raises NoMatchError at the end."""
        for mark in (START, CHANNEL, MESSAGE, " to="):
            if (yield from self.reader.literal(mark)):
                return mark if mark == MESSAGE else mark + (yield from self.reader.until((MESSAGE,))) + MESSAGE
        return ""

    def _message(self, header: str) -> Wait[None]:
        channel = re.search(rf"{re.escape(CHANNEL)}\s*(\w+)", header)
        told = re.search(r"\bto=([^\s<]+)", header)
        recipient = told[1] if told else ""
        if channel and channel[1] == _THOUGHTS and not recipient and self.options.thoughts:
            yield from self._thought()
            return
        self.thinking = False
        name = recipient.removeprefix(_NAMESPACE)
        if name in self.options.schemas:
            yield from self._called_with(name)
            return
        if self._said:
            self._gap = "\n\n"
        self._say(header if recipient else "")
        yield from self.reader.streamed((*ENDS, START), self._say)

    def _thought(self) -> Wait[None]:
        self._inside = self.thinking
        yield from think(self.reader, (*ENDS, START), self._think)
        if self._inside:
            self.thought_chars, self._inside = self.reader.taken, False

    def _think(self, thought: ReasoningDelta) -> None:
        self._out.append(thought)

    def _called_with(self, name: str) -> Wait[None]:
        said = False

        def argue(text: str) -> None:
            nonlocal said
            said = said or bool(text)
            self.argue(text)

        self.begin(name)
        yield from self.reader.spaces()
        ended = yield from self.reader.streamed((*ENDS, START), argue)
        if ended and not said:
            self.argue("{}")
