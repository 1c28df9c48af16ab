from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bases.errors import BaseModelError
from server.errors import InvalidRequestError
from server.text.tokenizer import TextProcessor, count_characters
from tests.factory import make_tokenizer

TEXTS = ["", "plain", "Grüße 世界 🎉", "<|im_start|>user\nhi<|im_end|>", " leading", "tab\tnewline\n"]
MESSAGES = [{"role": "system", "content": "é"}, {"role": "user", "content": "hi <|im_end|>"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def text(folder: Path) -> TextProcessor:
    return TextProcessor.load(folder)


@pytest.mark.parametrize("content", TEXTS)
def test_encodes_as_autotokenizer_does(text: TextProcessor, folder: Path, content: str) -> None:
    wanted = AutoTokenizer.from_pretrained(folder)
    for special in (True, False):
        assert text.encode(content, add_special_tokens=special) == wanted.encode(content, add_special_tokens=special)
    ids = wanted.encode(content)
    for skip in (True, False):
        assert text.decode(ids, skip_special_tokens=skip) == wanted.decode(ids, skip_special_tokens=skip)


def test_renders_as_training_does(text: TextProcessor, folder: Path) -> None:
    wanted = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_dict=False
    )
    assert text.encode(text.render_chat(MESSAGES), add_special_tokens=False) == wanted


def test_template_arguments_reach_the_template(folder: Path) -> None:
    text = TextProcessor.load(folder, "{{ style }}: {{ messages[0].content }}")
    assert text.render_chat([{"role": "user", "content": "x"}], {"style": "loud"}) == "loud: x"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[5].content }}", "chat template"),
        ("{{ 1 / 0 }}", "cannot render"),
        ("{{ messages[0].content + 1 }}", "cannot render"),
        ("{{ ''.__class__.__mro__ }}", "chat template"),
    ],
)
def test_template_errors_are_the_clients(folder: Path, template: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as error:
        TextProcessor.load(folder, template).render_chat([{"role": "user", "content": "x"}])
    assert error.value.param == "messages"


def test_a_base_without_template() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(InvalidRequestError, match="no chat template"):
        TextProcessor(tokenizer).render_chat(MESSAGES)


def test_a_limit_in_the_tokenizer_file_does_not_cut(folder: Path, tmp_path: Path) -> None:
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    assert len(TextProcessor.load(tmp_path).encode("123456", add_special_tokens=True)) == 6


async def test_long_texts_are_encoded_off_the_loop(text: TextProcessor) -> None:
    for content in [*TEXTS, "x" * 5_000, "wordy é 世界 <|im_end|>\n" * 20_000]:
        for special in (True, False):
            ids = await text.encode_off_loop(content, add_special_tokens=special)
            assert ids == text.encode(content, add_special_tokens=special)


async def test_long_conversations_are_rendered_off_the_loop(text: TextProcessor) -> None:
    for messages in ([{"role": "user", "content": "x" * 300_000}], [{"role": "user", "content": "x"}] * 5_000):
        assert await text.render_chat_off_loop(messages) == text.render_chat(messages)


def test_characters_are_those_of_keys_and_texts() -> None:
    assert count_characters({"ab": ["cde", 1, None, {"f": "世界"}], "g": True}) == 2 + 3 + 1 + 2 + 1


def test_fewest_tokens_is_a_lower_bound(text: TextProcessor) -> None:
    for content in (*TEXTS, "<|endoftext|>" * 50):
        assert text.fewest_tokens(content) <= len(text.encode(content, add_special_tokens=False))


@pytest.mark.parametrize("content", TEXTS)
def test_token_bytes_join_to_the_text(text: TextProcessor, content: str) -> None:
    ids = text.encode(content, add_special_tokens=False)
    assert b"".join(map(text.token_bytes, ids)) == content.encode()


def test_token_bytes_of_byte_fallback_and_of_nothing(text: TextProcessor) -> None:
    from tokenizers import decoders, models

    vocab = {"<unk>": 0, "<0xE2>": 1, "▁a": 2}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    other = TextProcessor(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert [other.token_bytes(i) for i in (1, 2)] == [b"\xe2", b" a"]
    assert text.token_bytes(10**6) == b""


@pytest.mark.parametrize("content", [None, "{", json.dumps({"tokenizer_class": "TokenizersBackend"})])
def test_a_folder_without_tokenizer(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(BaseModelError, match="tokenizer"):
        TextProcessor.load(tmp_path)
