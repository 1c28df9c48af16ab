"""Small tokenizers of every kind that bases come with: how they split texts, mark spaces and write what they miss."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast

from server.text.tokenizer import TextProcessor

WORDS = ("▁true", "true", "▁the", "▁hello", "▁world")
LETTERS = "▁abcdefghijklmnopqrstuvwxyz.,!é"
SPECIALS = ("<unk>", "<s>", "</s>")


def _bpe(words: tuple[str, ...], letters: str, first: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary in which ``words`` are merged letter by letter."""
    vocab = {token: number for number, token in enumerate(dict.fromkeys([*first, *letters]))}
    merges = []
    for word in words:
        for end in range(1, len(word)):
            if word[: end + 1] not in vocab:
                merges.append((word[:end], word[end]))
                vocab[word[: end + 1]] = len(vocab)
    return vocab, merges


def _with_specials(tokenizer: Tokenizer, names: tuple[str, ...] = SPECIALS) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    return tokenizer


def _beginning(tokenizer: Tokenizer, begin: str, end: str = "") -> Tokenizer:
    single = " ".join(filter(None, (begin, "$A", end)))
    used = [(name, SPECIALS.index(name)) for name in (begin, end) if name]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=used)
    return tokenizer


def byte_level(*, prefix_space: bool = False) -> Tokenizer:
    """GPT-2, Llama 3, Qwen; with ``prefix_space`` RoBERTa's kind, whose spans leave spaces out. One token is half."""
    letters = "".join(sorted(pre_tokenizers.ByteLevel.alphabet()))
    vocab, merges = _bpe(("Ġtrue", "true", "Ġâ", "Ġhello", "ĠĠ"), letters, [])
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    if prefix_space:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return _with_specials(tokenizer)


def sentencepiece(*, legacy: bool = True) -> Tokenizer:
    """Llama 2 and Mistral, which put a space before a text and take it from it; else Gemma, which does not."""
    vocab, merges = _bpe(WORDS, LETTERS, [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))])
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if legacy else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if legacy else steps)
    return _beginning(_with_specials(tokenizer), "<s>")


def unigram() -> Tokenizer:
    """T5, XGLM: pieces by likelihood, normalized texts, an end token behind."""
    pieces = [(word, -1.0 - len(LETTERS) / len(word)) for word in (*WORDS, *LETTERS)]
    tokenizer = Tokenizer(models.Unigram([(name, 0.0) for name in SPECIALS] + pieces, unk_id=0, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return _beginning(_with_specials(tokenizer), "", "</s>")


def wordpiece() -> Tokenizer:
    """BERT: lower case, and spaces that the decoder guesses."""
    words = ["true", "hello", "##world", "world", ".", ",", *LETTERS[1:], *(f"##{char}" for char in LETTERS[1:])]
    vocab = {word: number for number, word in enumerate(dict.fromkeys([*SPECIALS, *words]))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return _beginning(_with_specials(tokenizer), "<s>", "</s>")


def word_ends() -> Tokenizer:
    """GPT-1: words end in a mark, which is the space before the next word."""
    letters = [char + end for char in LETTERS[1:] for end in ("", "</w>")]
    vocab = {token: number for number, token in enumerate([*SPECIALS, *letters, "tr", "true</w>", "ue</w>"])}
    merges = [("t", "r"), ("u", "e</w>"), ("tr", "ue</w>")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return _with_specials(tokenizer)


def words() -> Tokenizer:
    """Whole words and no decoder at all: tokens are joined by spaces."""
    vocab = {word: number for number, word in enumerate([*SPECIALS, "true", "hello", "world"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _with_specials(tokenizer)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-level, prefix space": lambda: byte_level(prefix_space=True),
    "llama-2": sentencepiece,
    "gemma": lambda: sentencepiece(legacy=False),
    "unigram": unigram,
    "wordpiece": wordpiece,
    "word ends": word_ends,
    "words": words,
}


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """``tokenizer`` as transformers saves and loads it."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def processor(kind: str) -> TextProcessor:
    """The tokenizer of a kind, as the server has it."""
    return TextProcessor(fast(KINDS[kind]()))


def number(text: TextProcessor, token: str) -> int:
    """The id of a token that the vocabulary has."""
    found = text._backend.token_to_id(token)
    assert found is not None
    return found
