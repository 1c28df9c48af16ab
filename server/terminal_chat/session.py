"""A chat: lines in, answers and notes out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from server.terminal_chat.client import ChatClient, ChatError, Conversation, harmless
from server.terminal_chat.columns import side_by_side

HELP = """  /models         list the base and its adapters
  /use NAME ...   talk to another of them, or to several side by side; each conversation goes on
  /system TEXT    set the system prompt (empty: none)
  /clear          forget the conversations
  /exit           leave (also Ctrl-D)"""


class Session:
    """One run of the program, talking to ``models``. Notes are only for a person at a terminal."""

    def __init__(
        self, client: ChatClient, models: list[str], system: str, write: Callable[[str], Any], *, tty: bool
    ) -> None:
        self._client = client
        self._models = models
        self._system = system
        self._conversations: dict[str, Conversation] = {}
        self._write = write
        self._tty = tty
        self.failed = False

    @property
    def prompt(self) -> str:
        """What stands before the input."""
        return f"{' | '.join(self._models)} > " if self._tty else ""

    def take(self, line: str) -> bool:
        """Act on one line of input; False when it asks to leave."""
        line = line.strip()
        if line in ("/exit", "/quit"):
            return False
        if line:
            try:
                self._act(line)
            except ChatError as error:
                self._fail(str(error))
        return True

    def _act(self, line: str) -> None:
        if line.startswith("/"):
            self._command(line)
        elif len(self._models) > 1:
            self._say_to_all(line)
        else:
            self._say(line)

    def _fail(self, words: str) -> None:
        self.failed = True
        sys.stderr.write(f"{words}\n")

    def _say(self, text: str) -> None:
        conversation = self._conversation(self._models[0])
        turns = conversation.turns
        turns.append({"role": "user", "content": text})
        answer = ""
        try:
            for piece in self._client.reply(conversation):
                answer += piece
                self._write(harmless(piece) if self._tty else piece)
        except KeyboardInterrupt:
            self._note("(stopped)")
        except ChatError:
            turns.pop()
            raise
        self._write("\n")
        turns.append({"role": "assistant", "content": answer})

    def _say_to_all(self, text: str) -> None:
        for model in self._models:
            self._conversation(model).turns.append({"role": "user", "content": text})
        asks = {model: partial(self._client.reply, self._conversation(model)) for model in self._models}
        for column in side_by_side(asks, tty=self._tty, write=self._write):
            turns = self._conversation(column.model).turns
            if column.error:
                turns.pop()
                self._fail(f"{column.model}: {column.error}")
            else:
                turns.append({"role": "assistant", "content": column.text})

    def _conversation(self, model: str) -> Conversation:
        conversation = self._conversations.setdefault(model, Conversation(model))
        conversation.system = self._system
        return conversation

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        match name:
            case "/models":
                rows = (f"{'*' if model in self._models else ' '} {model}\n" for model in self._client.models())
                self._write("".join(rows))
            case "/use":
                self._use(argument.split())
            case "/system":
                self._system = argument
                self._note("system prompt set" if argument else "no system prompt")
            case "/clear":
                self._conversations.clear()
                self._note("conversations forgotten")
            case "/help":
                self._write(HELP + "\n")
            case _:
                raise ChatError(f"there is no command {name}; these are:\n{HELP}")

    def _use(self, names: list[str]) -> None:
        """Go on with ``names``; who comes new to it takes over what was said to the one before."""
        models = self._client.models()
        check_names(names, models)
        before = self._conversation(self._models[0])
        for name in names:
            if name not in self._models:
                self._conversations[name] = Conversation(name, turns=list(before.turns))
        self._models = names
        self._note(f"now talking to {' and '.join(names)}")

    def _note(self, text: str) -> None:
        if self._tty:
            self._write(f"{text}\n")


def check_names(names: list[str], models: list[str]) -> None:
    """Raise ChatError unless each of ``names`` is there, and only once."""
    for name in names:
        if name.partition("@")[0] not in models and name not in models:
            raise ChatError(f"there is no model {name!r}; there are: {', '.join(models)}")
    if not names:
        raise ChatError("name a model, or several different ones")
    check_distinct(names)


def check_distinct(names: list[str]) -> None:
    """Raise ChatError where one of ``names`` stands there twice."""
    if len(set(names)) < len(names):
        raise ChatError("a model is named twice")
