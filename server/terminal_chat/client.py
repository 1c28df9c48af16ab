"""What can be asked of an OpenAI-compatible server by a person who chats: its models, and answers piece by piece."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx


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

    def close(self) -> None:
        """Give its connections back."""
        self._http.close()

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


def harmless(text: str) -> str:
    """``text`` without characters that a terminal would obey: a model may have learned any."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


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
