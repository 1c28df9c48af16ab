"""What form of a conversation a chat template takes, found out by rendering a few, and conversations brought into it.

Templates differ in what they expect: content as a text or as a list of parts, a role ``developer``, one system message
or several, arguments of tool calls as an object or as a text. What they do not expect they often lose without a word.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

import msgspec

from server.text.template_environment import Message

Content = str | list[Any] | None
Attempt = Callable[[Sequence[Message]], str | None]
SYSTEM, DEVELOPER, USER, ASSISTANT, TOOL = "system", "developer", "user", "assistant", "tool"
_KIN = {DEVELOPER: SYSTEM, "function": TOOL}  # roles that are taken for another where nothing else is known


class ContentForm(Enum):
    """How content reaches a template: a text, a list of parts, a list of one part, or as it was sent."""

    TEXT = auto()
    PARTS = auto()
    ONE_PART = auto()
    AS_SENT = auto()

    def of(self, content: Content) -> Content:
        """``content`` in this form."""
        if self is ContentForm.AS_SENT and content is not None:
            return content
        if self in (ContentForm.TEXT, ContentForm.AS_SENT):
            return content_text(content)
        if self is ContentForm.PARTS and isinstance(content, list):
            return content
        return [] if content is None else [_part(content_text(content))]


def content_text(content: Content) -> str:
    """Content as one text."""
    if isinstance(content, list):
        return "\n".join(text for part in content if isinstance(text := part.get("text"), str))
    return content or ""


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@dataclass(frozen=True)
class TemplateForm:
    """What a template takes. ``content`` by role, that of users for others.

    ``developer``: it knows that role. ``merges_system``: it takes one message of that sort, not several in a row.
    ``text_arguments``: it wants the arguments of tool calls encoded, as clients send them.
    """

    content: Mapping[str, ContentForm] = field(default_factory=dict)
    developer: bool = False
    merges_system: bool = False
    text_arguments: bool = False

    def arrange(self, messages: Sequence[Message]) -> list[Message]:
        """Copies of ``messages`` as the template takes them. No text is lost."""
        known = messages if self.developer else [_as_system(message) for message in messages]
        merged = _merged(known) if self.merges_system else known
        return [self._arrange(message) for message in merged]

    def _arrange(self, message: Message) -> Message:
        plain = {**message, "content": self.content_form(message["role"]).of(message.get("content"))}
        if isinstance(calls := message.get("tool_calls"), list):
            plain["tool_calls"] = [self._with_arguments(call, "function") for call in calls]
        if not calls:  # some templates only ask whether there is a list
            plain.pop("tool_calls", None)
        if "function_call" in message:  # before there were tools
            plain["function_call"] = self._with_arguments(message, "function_call")["function_call"]
        return plain

    def content_form(self, role: str) -> ContentForm:
        """How content of a role is given."""
        by_kin = self.content.get(_KIN.get(role, USER), self.content.get(USER, ContentForm.TEXT))
        return self.content.get(role, by_kin)

    def _with_arguments(self, holder: Any, key: str) -> Any:
        """``holder`` with the arguments of the call at ``key`` in the template's form; other things as they are."""
        call = holder.get(key) if isinstance(holder, dict) else None
        if not isinstance(call, dict) or "arguments" not in call:
            return holder
        arguments = call["arguments"]
        if self.text_arguments:
            sent = json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments
        else:
            sent = decoded_arguments(arguments)
        return {**holder, key: {**call, "arguments": sent}}


def decoded_arguments(arguments: Any) -> Any:
    """The object that an encoded one spells; anything else as it is. Nothing stands for no arguments."""
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return {}
    if not isinstance(arguments, str):
        return arguments
    try:
        return msgspec.json.decode(arguments, type=dict[str, Any])  # strict: no NaN, no lone surrogates
    except (ValueError, RecursionError):
        return arguments


def _as_system(message: Message) -> Message:
    return {**message, "role": SYSTEM} if message["role"] == DEVELOPER else message


def _merged(messages: Sequence[Message]) -> list[Message]:
    """``messages`` with neighbouring system messages made one, of the role of the first."""
    out: list[Message] = []
    for message in messages:
        if out and {message["role"], out[-1]["role"]} <= {SYSTEM, DEVELOPER}:
            texts = [content_text(one.get("content")) for one in (out[-1], message)]
            out[-1] = {**message, **out[-1], "content": "\n\n".join(text for text in texts if text)}
        else:
            out.append(message)
    return out


# ---- finding out ----

_TEXT, _FILLER = "Probe text", "Probe filler"
_STRICT = "Probe '\"{}"  # neither Python's repr nor JSON writes quotes of both kinds as they are
_NONSENSE = "qzrole"
_KEY = "probe_key"
_CALL_ID = "probe0001"  # nine letters and digits, as some templates demand


def find_form(attempt: Attempt) -> TemplateForm:
    """The form that a template takes; ``attempt`` renders a conversation, None when the template fails."""
    content: dict[str, ContentForm] = {}
    for role in (USER, SYSTEM, ASSISTANT, TOOL):
        if (found := _find_content_form(attempt, role, content.get(USER, ContentForm.TEXT))) is not None:
            content[role] = found
    form = TemplateForm(content, developer=_knows_developer(attempt, TemplateForm(content)))
    return replace(
        form, merges_system=_merges_system(attempt, form), text_arguments=_wants_text_arguments(attempt, form)
    )


def _find_content_form(attempt: Attempt, role: str, user: ContentForm) -> ContentForm | None:
    """How the content of ``role`` comes through; None when it does in no form."""

    def rendered(content: Content) -> Iterator[str]:
        for messages in _conversations(role, content, user):
            if (text := attempt(messages)) is not None:
                yield text

    def shows(content: Content, *wanted: str) -> str | None:
        return next((text for text in rendered(content) if all(one in text for one in wanted)), None)

    first, second = _STRICT.format("A"), _STRICT.format("B")
    text, strict = shows(_TEXT, _TEXT), shows(first, first)
    one = shows([_part(first)], first)
    two = shows([_part(first), _part(second)], first, second)
    if text is not None:
        return ContentForm.AS_SENT if strict is not None and strict == one and two is not None else ContentForm.TEXT
    if two is not None:
        return ContentForm.PARTS
    return ContentForm.ONE_PART if one is not None or shows([_part(_TEXT)], _TEXT) is not None else None


def _conversations(role: str, content: Content, user: ContentForm) -> list[list[Message]]:
    """Conversations in which a message of ``role`` says ``content``, the plainest first."""
    asked = {"role": USER, "content": user.of(_FILLER)}
    said = {"role": role, "content": content}
    if role == USER:
        other: Content = _FILLER if isinstance(content, str) else [_part(_FILLER)]
        return [[said], [{"role": SYSTEM, "content": other}, said]]
    if role == SYSTEM:
        return [[said, asked]]
    if role == ASSISTANT:
        return [[asked, said], [asked, said, asked]]
    said["tool_call_id"] = _CALL_ID
    return [[asked, _calling({}, user), said], [asked, _calling("{}", user), said], [asked, said]]


def _calling(arguments: Any, form: ContentForm) -> Message:
    function = {"name": "probe", "arguments": arguments}
    calls = [{"id": _CALL_ID, "type": "function", "function": function}]
    return {"role": ASSISTANT, "content": form.of(None), "tool_calls": calls}


def _knows_developer(attempt: Attempt, form: TemplateForm) -> bool:
    """Whether ``developer`` is more to the template than any word in the place of a role."""

    def render(role: str) -> str | None:
        said = {"role": role, "content": form.content_form(SYSTEM).of(_TEXT)}
        return attempt([said, {"role": USER, "content": form.content_form(USER).of(_FILLER)}])

    found, nonsense = render(DEVELOPER), render(_NONSENSE)
    if found is None or _TEXT not in found:
        return False
    return nonsense is None or nonsense.casefold().replace(_NONSENSE, DEVELOPER) != found.casefold()


def _merges_system(attempt: Attempt, form: TemplateForm) -> bool:
    """Whether one system message comes through and of two in a row something is lost."""

    def shows(*roles: str) -> bool:
        said = [f"{_TEXT} {number}" for number in range(len(roles))]
        messages = [
            {"role": role, "content": form.content_form(SYSTEM).of(text)}
            for role, text in zip(roles, said, strict=True)
        ]
        found = attempt([*messages, {"role": USER, "content": form.content_form(USER).of(_FILLER)}])
        return found is not None and all(text in found for text in said)

    if not shows(SYSTEM):
        return False
    return not shows(SYSTEM, SYSTEM) or (form.developer and not shows(SYSTEM, DEVELOPER))


def _wants_text_arguments(attempt: Attempt, form: TemplateForm) -> bool:
    """Whether arguments come through encoded alone: as an object they fail, or are written as Python's repr."""

    def rendered(arguments: Any) -> Iterator[str]:
        asked = {"role": USER, "content": form.content_form(USER).of(_FILLER)}
        calling = _calling(arguments, form.content_form(ASSISTANT))
        answer = {"role": TOOL, "tool_call_id": _CALL_ID, "content": form.content_form(TOOL).of(_FILLER)}
        for messages in ([asked, calling, answer], [asked, calling]):
            if (text := attempt(messages)) is not None:
                yield text

    encoded = json.dumps({_KEY: 1})
    if any(_KEY in text and f"'{_KEY}'" not in text for text in rendered({_KEY: 1})):
        return False
    return any(encoded in text for text in rendered(encoded))
