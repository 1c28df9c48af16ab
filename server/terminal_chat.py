"""``hotswap chat``: talk to any OpenAI-compatible server in the terminal, with streaming and a choice of models.

Reads standard input, so it also works in a pipe: then it prints the answers and nothing else. Imports no model code.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

HELP = """  /models         list the base and its adapters
  /use NAME       talk to another of them; the conversation goes on
  /system TEXT    set the system prompt (empty: none)
  /clear          forget the conversation
  /exit           leave (also Ctrl-D)"""


class ChatError(Exception):
    """The server cannot be used as asked; the message is for the person at the terminal."""


@dataclass
class Conversation:
    """What has been said, to whom."""

    model: str
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)

    def messages(self) -> list[dict[str, str]]:
        """As the API wants it."""
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.turns


class ChatClient:
    """The few calls a chat needs."""

    def __init__(self, url: str, api_key: str | None, max_tokens: int | None, temperature: float | None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        base = url.rstrip("/").removesuffix("/v1")
        self._url = base
        self._http = httpx.Client(base_url=base, headers=headers, timeout=httpx.Timeout(600, connect=10))
        self._options = {"max_tokens": max_tokens, "temperature": temperature}

    def models(self) -> list[str]:
        """Names that can be talked to; the base first. Raises ChatError."""
        with self._errors():
            response = self._http.get("/v1/models")
            _check(response)
            return [model["id"] for model in response.json()["data"]]

    def reply(self, conversation: Conversation) -> Iterator[str]:
        """The pieces of the next answer. Raises ChatError."""
        body = {"model": conversation.model, "messages": conversation.messages(), "stream": True}
        body |= {key: value for key, value in self._options.items() if value is not None}
        with self._errors(), self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                response.read()
            _check(response)
            yield from _pieces(response.iter_lines())

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ChatError(f"cannot reach {self._url}: {error or type(error).__name__}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ChatError(f"{self._url} does not answer like an OpenAI-compatible server") from error


def _check(response: httpx.Response) -> None:
    if response.status_code != 200:
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"the server answered {response.status_code}"
        raise ChatError(message)


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data == "[DONE]":
            return
        if data:
            yield from _content(json.loads(data))


def _content(chunk: dict[str, Any]) -> Iterator[str]:
    if "error" in chunk:
        raise ChatError(chunk["error"]["message"])
    for choice in chunk["choices"]:
        if text := choice["delta"].get("content"):
            yield text


class Session:
    """One run of the program: lines in, answers and notes out. Notes are only for a person at a terminal."""

    def __init__(
        self, client: ChatClient, conversation: Conversation, write: Callable[[str], Any], *, tty: bool
    ) -> None:
        self._client = client
        self._conversation = conversation
        self._write = write
        self._tty = tty
        self.failed = False

    @property
    def prompt(self) -> str:
        """What stands before the input."""
        return f"{self._conversation.model} > " if self._tty else ""

    def take(self, line: str) -> bool:
        """Act on one line of input; False when it asks to leave."""
        line = line.strip()
        if line in ("/exit", "/quit"):
            return False
        if line:
            try:
                self._command(line) if line.startswith("/") else self._say(line)
            except ChatError as error:
                self.failed = True
                sys.stderr.write(f"{error}\n")
        return True

    def _say(self, text: str) -> None:
        turns = self._conversation.turns
        turns.append({"role": "user", "content": text})
        answer = ""
        try:
            for piece in self._client.reply(self._conversation):
                answer += piece
                self._write(piece)
        except KeyboardInterrupt:
            self._note("(stopped)")
        except ChatError:
            turns.pop()
            raise
        self._write("\n")
        turns.append({"role": "assistant", "content": answer})

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        argument = argument.strip()
        match name:
            case "/models":
                marks = {self._conversation.model: "*"}
                self._write("".join(f"{marks.get(model, ' ')} {model}\n" for model in self._client.models()))
            case "/use":
                self._use(argument)
            case "/system":
                self._conversation.system = argument
                self._note("system prompt set" if argument else "no system prompt")
            case "/clear":
                self._conversation.turns.clear()
                self._note("conversation forgotten")
            case "/help":
                self._write(HELP + "\n")
            case _:
                raise ChatError(f"there is no command {name}; these are:\n{HELP}")

    def _use(self, name: str) -> None:
        models = self._client.models()
        if name.partition("@")[0] not in models and name not in models:
            raise ChatError(f"there is no model {name!r}; there are: {', '.join(models)}")
        self._conversation.model = name
        self._note(f"now talking to {name}")

    def _note(self, text: str) -> None:
        if self._tty:
            self._write(f"{text}\n")


def main(argv: Sequence[str]) -> int:
    """Run the program; returns the exit code."""
    options = _parser().parse_args(list(argv))
    client = ChatClient(options.url, options.api_key, options.max_tokens, options.temperature)
    tty = sys.stdin.isatty() and sys.stdout.isatty()
    try:
        models = client.models()
        model = options.model or models[0]
    except (ChatError, IndexError) as error:
        sys.stderr.write(f"hotswap chat: {error if isinstance(error, ChatError) else 'the server has no models'}\n")
        return 1
    session = Session(client, Conversation(model, options.system), _flushing(sys.stdout), tty=tty)
    if tty:
        sys.stdout.write(f"talking to {model} at {options.url}; /help lists the commands, Ctrl-D leaves\n")
    _read_lines(session)
    return 1 if session.failed and not tty else 0


def _read_lines(session: Session) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() editing and history

    while True:
        try:
            if not session.take(input(session.prompt)):
                return
        except EOFError:
            return
        except KeyboardInterrupt:
            sys.stdout.write("\n")


def _flushing(stream: Any) -> Callable[[str], None]:
    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return write


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hotswap chat",
        description="Talk to a server in the terminal.",
        epilog="Inside:\n" + HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default %(default)s)")
    parser.add_argument("--model", "--adapter", metavar="NAME", help="base or adapter (default: the base)")
    parser.add_argument("--api-key", default=os.environ.get("HOTSWAP_API_KEY"), help="default: $HOTSWAP_API_KEY")
    parser.add_argument("--system", default="", metavar="TEXT", help="system prompt")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer (default: what fits)")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 always takes the likeliest (default 1)")
    return parser
