"""The base's tokenizer with an adapter's tokens, against the tokenizer that the adapter was trained with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from adapters.errors import BaseMismatchError, PackageError
from adapters.limits import DEFAULT_LIMITS
from adapters.package.added_tokens import AddedToken, read_added_tokens
from server.text.detokenize import IncrementalDecoder
from server.text.extended_tokenizer import extended_tokenizer
from server.text.tokenizer import TextProcessor
from tests.factory import make_tokenizer

TEXTS = ["", "<call>", "a <call> b", "<call><|tool|>x", "  <|tool|>  y", "<CALL> z", "wordy words word", "é<call>世界"]


def metaspace() -> PreTrainedTokenizerFast:
    """As sentencepiece's: where a text is cut decides where spaces are put."""
    pieces = ["<unk>", "<s>", "\u2581", *[chr(c) for c in range(33, 127)], "\u2581a", "\u2581word"]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [("\u2581", "a")], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


MAKE = {"byte level": make_tokenizer, "metaspace": metaspace}


@pytest.fixture(params=list(MAKE))
def trained(request: pytest.FixtureRequest) -> tuple[TextProcessor, PreTrainedTokenizerFast]:
    """The base's tokenizer, and the adapter's."""
    own = MAKE[request.param]()
    own.add_tokens(["<call>", tokenizers.AddedToken("word", single_word=True)])
    own.add_special_tokens(
        {"additional_special_tokens": [tokenizers.AddedToken("<|tool|>", lstrip=True, rstrip=True, special=True)]}
    )
    return TextProcessor(MAKE[request.param]()), own


def test_texts_and_ids_are_those_of_the_trained_tokenizer(
    trained: tuple[TextProcessor, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    base, own = trained
    own.save_pretrained(tmp_path)
    tokens = base.new_tokens(read_added_tokens(tmp_path))
    assert [token.content for token in tokens] == ["<call>", "word", "<|tool|>"]
    text = base.with_tokens(tokens)
    assert base.with_tokens(tokens) is text
    for content in TEXTS:
        ids = own.encode(content, add_special_tokens=False)
        assert text.encode(content, add_special_tokens=False) == ids
        for skip in (True, False):
            assert text.decode(ids, skip_special_tokens=skip) == own.decode(ids, skip_special_tokens=skip)
        decoder = IncrementalDecoder(text, skip_special_tokens=False)
        pieces = "".join(map(decoder.push, ids)) + decoder.flush()
        assert pieces == own.decode(ids, skip_special_tokens=False)
    call = own.convert_tokens_to_ids("<call>")
    assert isinstance(call, int)
    assert text.token_text(call) == "<call>"
    assert text.token_bytes(call) == b"<call>"
    assert call not in base.encode("<call>", add_special_tokens=False)
    assert base.decode([call], skip_special_tokens=False) == ""


def test_a_tokenizer_without_new_tokens_is_the_bases() -> None:
    base = TextProcessor(make_tokenizer())
    known = AddedToken(256, "<|endoftext|>", special=True)
    assert base.new_tokens((known,)) == ()
    assert base.with_tokens(()) is base


def test_contradictions_are_refused() -> None:
    base = TextProcessor(make_tokenizer())
    with pytest.raises(BaseMismatchError, match=r"token 256 is '<pad>' in the adapter's tokenizer, '<.endoftext.>' in"):
        base.new_tokens((AddedToken(256, "<pad>"),))
    with pytest.raises(BaseMismatchError, match="and has the number 257 in the base's"):
        base.new_tokens((AddedToken(300, "<|im_start|>"),))
    with pytest.raises(PackageError, match="'<x>' has the number 300, but comes as number 259"):
        base.with_tokens((AddedToken(300, "<x>"),))


def test_a_text_of_one_long_token_is_not_taken_for_many() -> None:
    long = "<" + "x" * 500 + ">"
    text = TextProcessor(make_tokenizer()).with_tokens((AddedToken(259, long),))
    assert text.encode(long, add_special_tokens=False) == [259]
    assert text.fewest_tokens(long) <= 1


def test_other_tokens_at_the_ends_of_texts_are_refused() -> None:
    base = TextProcessor(make_tokenizer())
    same = {"eos_token": make_tokenizer().eos_token, "pad_token": "<another>", "bos_token": "<not here>"}
    base.check_special_tokens({})
    base.check_special_tokens({key: value for key, value in same.items() if key != "bos_token"})
    with pytest.raises(BaseMismatchError, match="trained with the eos_token '</s>', and this server's tokenizer has"):
        base.check_special_tokens({"eos_token": "</s>"})


def test_many_tokens_are_added_at_once_in_any_order_of_kinds() -> None:
    base = TextProcessor(make_tokenizer())
    tokens = tuple(AddedToken(259 + i, f"<{i}>", special=i % 2 == 0, normalized=i % 3 == 0) for i in range(5000))
    text = base.with_tokens(tokens)
    assert text.encode("".join(token.content for token in tokens), add_special_tokens=False) == list(range(259, 5259))
    assert text.decode([259, 260, 261, 262], skip_special_tokens=True) == "<1><3>"
    assert base.encode("<0>", add_special_tokens=False) == base.encode("<0>", add_special_tokens=True)


def test_tokens_too_long_together_are_refused() -> None:
    base, most = TextProcessor(make_tokenizer()), DEFAULT_LIMITS.max_added_token_chars
    tokens = tuple(AddedToken(259 + i, f"{i:01000d}") for i in range(most // 1000 + 1))
    with pytest.raises(PackageError, match=rf"have {len(tokens) * 1000} characters together; at most {most} are"):
        base.new_tokens(tokens)


@pytest.mark.parametrize("make", list(MAKE.values()))
def test_an_extended_tokenizer_is_as_a_whole_copy(
    make: Callable[[], PreTrainedTokenizerFast],
) -> None:
    base = make().backend_tokenizer
    first = base.id_to_token(0)
    base.post_processor = processors.TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 0)])
    base.add_tokens([tokenizers.AddedToken("Word", normalized=True), tokenizers.AddedToken("wor", single_word=True)])
    before = base.to_str()
    tokens = (AddedToken(base.get_vocab_size(), "<new>", special=True),)
    extended, read_again = extended_tokenizer(base, tokens), Tokenizer.from_str(before)
    read_again.add_tokens([tokenizers.AddedToken("<new>", normalized=False, special=True)])
    assert extended.to_str() == read_again.to_str()
    for content in [*TEXTS, "Word wor words", "a <new> b"]:
        for special in (True, False):
            ids = extended.encode(content, add_special_tokens=special).ids
            assert ids == read_again.encode(content, add_special_tokens=special).ids
            assert extended.decode(ids) == read_again.decode(ids)
    assert base.to_str() == before
    assert base.token_to_id("<new>") is None
