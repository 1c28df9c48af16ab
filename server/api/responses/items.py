"""Input items of a response, read as the messages of a chat.

An assistant's turn may be several items: its thoughts, what it says and the tools it calls are one message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapters.quoting import quote
from server.api.responses.summaries import summary_message
from server.errors import InvalidRequestError

Item = dict[str, Any]
Message = dict[str, Any]
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_ROLES = ("user", "assistant", "system", "developer")
_OTHER_PARTS = ("input_image", "input_file", "input_audio", "input_video")


def as_items(given: str | Sequence[Item] | None) -> list[Item]:
    """What a request gives as its input, as items: a text is a message of the user's."""
    if given is None:
        return []
    return [{"type": "message", "role": "user", "content": given}] if isinstance(given, str) else list(given)


def messages_of(items: Sequence[Item], *, earlier: int = 0, source: str = "previous_response_id") -> list[Message]:
    """The messages of a conversation. The first ``earlier`` items are of before this request, as its ``source`` says.

    Raises InvalidRequestError that names the item at fault.
    """
    reader = _Reader()
    for number, item in enumerate(items):
        place = f"input[{number - earlier}]" if number >= earlier else source
        reader.read(item, place)
    return reader.messages


class _Reader:
    """Reads items one after the other."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._calls: set[str] = set()
        self._thoughts = ""  # that the next message of the assistant's begins with

    def read(self, item: Item, place: str) -> None:
        kind = item.get("type") or ("message" if "role" in item else "item_reference" if "id" in item else None)
        match kind:
            case "message":
                self._message(item, place)
            case "function_call":
                self._call(item, place)
            case "function_call_output":
                self._output(item, place)
            case "reasoning":
                self._thoughts += _thoughts(item, place)
            case "compaction" | "compaction_summary" | "context_compaction":
                self.messages.append({"role": "system", "content": _summary(item, place)})
            case "item_reference":
                raise _fault(place, "an item is not found by its id; send it itself, or use `previous_response_id`")
            case _:
                raise _fault(
                    place,
                    f"items of the type {quote(str(kind)[:64])} are not served; messages, function calls, their "
                    "outputs and reasoning are",
                )

    def _message(self, item: Item, place: str) -> None:
        role = item.get("role")
        if role not in _ROLES:
            raise _fault(f"{place}.role", f"must be one of {', '.join(_ROLES)}")
        message: Message = {"role": role, "content": _content(item.get("content"), f"{place}.content")}
        if role == "assistant":
            message |= self._taken_thoughts()
        self.messages.append(message)

    def _call(self, item: Item, place: str) -> None:
        call_id, name = _text_field(item, "call_id", place), _text_field(item, "name", place)
        self._calls.add(call_id)
        function = {"name": name, "arguments": _text_field(item, "arguments", place)}
        call = {"id": call_id, "type": "function", "function": function}
        if not self.messages or self.messages[-1]["role"] != "assistant" or self._thoughts:
            self.messages.append({"role": "assistant", "content": None, **self._taken_thoughts()})
        self.messages[-1].setdefault("tool_calls", []).append(call)

    def _output(self, item: Item, place: str) -> None:
        call_id = _text_field(item, "call_id", place)
        if call_id not in self._calls:
            raise _fault(
                f"{place}.call_id", f"no function call has the call_id {quote(call_id[:64])}; send it before its output"
            )
        content = _content(item.get("output"), f"{place}.output")
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": content})

    def _taken_thoughts(self) -> dict[str, str]:
        thoughts, self._thoughts = self._thoughts, ""
        return {"reasoning_content": thoughts} if thoughts else {}


def _content(content: Any, place: str) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _fault(place, "must be a text or a list of parts")
    return [{"type": "text", "text": _part(part, f"{place}[{number}]")} for number, part in enumerate(content)]


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _OTHER_PARTS:
        raise _fault(place, f"{kind} is not served: only text is read and written")
    key = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if key is None or not isinstance(text := part.get(key), str):
        raise _fault(place, "must be {'type': 'input_text', 'text': ...}; only text is served")
    return text


def _thoughts(item: Item, place: str) -> str:
    """The thoughts of a reasoning item; of its summary where it holds no more. What is encrypted elsewhere is lost."""
    parts = item.get("content") or item.get("summary") or []
    if not isinstance(parts, list):
        raise _fault(f"{place}.content", "must be a list of parts")
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _summary(item: Item, place: str) -> str:
    try:
        return summary_message(_text_field(item, "encrypted_content", place))
    except ValueError as error:
        raise _fault(f"{place}.encrypted_content", str(error)) from error


def _text_field(item: Item, key: str, place: str) -> str:
    if not isinstance(value := item.get(key), str) or (key != "arguments" and not value):
        raise _fault(f"{place}.{key}", "must be a text")
    return value


def _fault(place: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"{place}: {what}", param=place)
