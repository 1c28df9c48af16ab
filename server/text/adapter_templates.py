"""The chat templates that adapters bring: which of them are used, and what renders those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from adapters.package.chat_template import PackageChat
from server.text.chat_template import ChatTemplate, ForeignRenderer
from server.text.template_sandbox import TemplateSandbox

MAX_TEMPLATES = 256  # kept with what is known of them


class AdapterTemplates:
    """Templates beside the base's, which is ``source`` (None: it has none) and is given ``special_tokens`` by role.

    ``sandbox`` renders them; without one the operator does not allow any.
    """

    def __init__(self, source: str | None, special_tokens: Mapping[str, str], sandbox: TemplateSandbox | None) -> None:
        self._source = source
        self._special_tokens = dict(special_tokens)
        self._sandbox = sandbox
        self._made = lru_cache(maxsize=MAX_TEMPLATES)(self._make)

    def fit(self, chat: PackageChat) -> PackageChat:
        """``chat`` as it is served: its template only where it differs from the base's and is allowed."""
        none = replace(chat, template=None, special_tokens=())
        if chat.template is None or self._is_the_bases(chat.template, dict(chat.special_tokens)):
            return none
        if self._sandbox is not None:
            return replace(chat, special_tokens=tuple(sorted(self.special_tokens_of(chat).items())))
        instead = "are rendered with the base's" if self._source else "cannot be rendered, as the base has none"
        warning = (
            f"it comes with a chat template of its own, which is not used: conversations {instead} (the server's "
            "--adapter-templates lets adapters use theirs)"
        )
        return replace(none, warnings=(*chat.warnings, warning))

    def special_tokens_of(self, chat: PackageChat) -> dict[str, str]:
        """What its template is given, by role: its own before the base's."""
        special = {**self._special_tokens, **dict(chat.special_tokens)}
        return {role: text for role, text in special.items() if text}

    def get(self, chat: PackageChat) -> ChatTemplate | None:
        """The template of what ``fit`` gave; None where it is the base's."""
        return None if chat.template is None else self._made(chat.template, chat.special_tokens)

    def close(self) -> None:
        """End what renders them."""
        if self._sandbox is not None:
            self._sandbox.close()

    def _is_the_bases(self, template: str, special_tokens: Mapping[str, str]) -> bool:
        """Whether it writes what the base's does: it is that one, and special tokens that it looks at are as well."""
        others = [role for role, text in special_tokens.items() if self._special_tokens.get(role, "") != text]
        same = template.removesuffix("\n") == (self._source or "").removesuffix("\n")  # as Jinja reads them
        return same and not any(role in template for role in others)

    def _make(self, source: str, special_tokens: tuple[tuple[str, str], ...]) -> ChatTemplate:
        assert self._sandbox is not None, "adapters' templates are not allowed"
        return ChatTemplate(source, ForeignRenderer(self._sandbox, source, dict(special_tokens)))
