"""Whether an adapter's chat template is the base's, is used beside it, or is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from adapters.package.chat_template import NO_CHAT, PackageChat
from server.text.adapter_templates import AdapterTemplates
from server.text.template_sandbox import TemplateSandbox

BASES = "{{ messages[0].content }}{{ eos_token }}"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
OWN = PackageChat(template="own", special_tokens=(("eos_token", "<e>"),), end_token_ids=(3,), warnings=("before",))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[TemplateSandbox]:
    made = TemplateSandbox()
    yield made
    made.close()


@pytest.mark.parametrize(
    "chat",
    [
        NO_CHAT,
        PackageChat(special_tokens=(("eos_token", "<e>"),)),
        PackageChat(template=BASES),
        PackageChat(template=BASES + "\n"),
        PackageChat(template=BASES, special_tokens=(("eos_token", "</s>"), ("unk_token", "<u>"))),
    ],
)
@pytest.mark.parametrize("allowed", [True, False])
def test_what_writes_as_the_base_does_is_the_bases(sandbox: TemplateSandbox, chat: PackageChat, allowed: bool) -> None:
    templates = AdapterTemplates(BASES, SPECIAL, sandbox if allowed else None)
    assert templates.fit(chat) == NO_CHAT
    assert templates.get(templates.fit(chat)) is None


@pytest.mark.parametrize("chat", [OWN, PackageChat(template=BASES, special_tokens=(("eos_token", "<e>"),))])
def test_what_is_allowed_is_used_with_its_own_special_tokens(sandbox: TemplateSandbox, chat: PackageChat) -> None:
    templates = AdapterTemplates(BASES, SPECIAL, sandbox)
    fitted = templates.fit(chat)
    assert (fitted.template, fitted.end_token_ids, fitted.warnings) == (
        chat.template,
        chat.end_token_ids,
        chat.warnings,
    )
    assert dict(fitted.special_tokens) == {"bos_token": "<s>", "eos_token": "<e>"}
    made = templates.get(fitted)
    assert made is not None
    assert made is templates.get(templates.fit(chat)), "it is found out once what a template takes"
    if chat.template == BASES:
        assert made.render([{"role": "user", "content": "Hi"}]) == "Hi<e>"


@pytest.mark.parametrize(("source", "words"), [(BASES, "rendered with the base's"), (None, "the base has none")])
def test_what_is_not_allowed_is_told(source: str | None, words: str) -> None:
    fitted = AdapterTemplates(source, SPECIAL, None).fit(OWN)
    assert (fitted.template, fitted.special_tokens, fitted.end_token_ids) == (None, (), (3,))
    assert fitted.warnings[0] == "before"
    assert words in fitted.warnings[1]


def test_a_tokenizer_without_a_token_that_the_base_has(sandbox: TemplateSandbox) -> None:
    """It says null, and its template then writes nothing there."""
    templates = AdapterTemplates(BASES, {"bos_token": "<s>", "eos_token": "</s>"}, sandbox)
    chat = PackageChat(template="{{ bos_token }}x", special_tokens=(("bos_token", ""), ("sep_token", "")))
    fitted = templates.fit(chat)
    assert fitted.special_tokens == (("eos_token", "</s>"),)
    template = templates.get(fitted)
    assert template is not None
    assert template.render([{"role": "user", "content": "Hi"}]) == "x"
    assert templates.fit(PackageChat(template=BASES, special_tokens=(("sep_token", ""),))).template is None
