from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from tests.server.api.support import BASE, MAX_LEN, error_of
from tests.server.live import Live


def test_there_and_back(server: Live) -> None:
    text = "Grüße, 世界 🎉 <|im_end|>"
    answer = server.post("/tokenize", {"model": BASE, "prompt": text}).json()
    assert answer["count"] == len(answer["tokens"])
    assert answer["max_model_len"] == MAX_LEN
    assert server.post("/v1/detokenize", {"model": "lora", "tokens": answer["tokens"]}).json() == {"prompt": text}


def test_a_conversation(server: Live, base: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    wanted = AutoTokenizer.from_pretrained(base).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert server.post("/tokenize", {"messages": messages}).json()["tokens"] == wanted


def test_mistakes(server: Live) -> None:
    error_of(server.post("/tokenize", {"model": "nobody", "prompt": "x"}), 404)
    error_of(server.post("/tokenize", {}))
    error_of(server.post("/tokenize", {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}))
    error_of(server.post("/detokenize", {"tokens": [-1]}))
    error_of(server.post("/detokenize", {"tokens": [2**40]}))
    assert "token id 300 " in error_of(server.post("/detokenize", {"tokens": [5, 300]}))["message"]
    assert "token id 400 " in error_of(server.post("/detokenize", {"tokens": [5] * 5000 + [400]}))["message"]
    error_of(server.post("/detokenize", {"tokens": [2**31 - 1]}))


def test_tokens_as_the_vocabulary_writes_them(server: Live, base: Path) -> None:
    answer = server.post("/tokenize", {"prompt": "é a<|im_end|>", "return_token_strs": True}).json()
    assert answer["token_strs"] == AutoTokenizer.from_pretrained(base).convert_ids_to_tokens(answer["tokens"])
    assert answer["token_strs"][-3:] == ["Ġ", "a", "<|im_end|>"]
    assert server.post("/tokenize", {"prompt": "a"}).json()["token_strs"] is None


def test_a_text_of_more_tokens_than_are_written_at_once(server: Live) -> None:
    text = "ab" * 20_000
    answer = server.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) == 40_000
    assert "".join(answer["token_strs"]) == text
    end = server.post("/tokenize", {"prompt": text, "truncate_prompt_tokens": 3}).json()
    begin = server.post("/tokenize", {"prompt": text, "truncate_prompt_tokens": 3, "truncation_side": "right"}).json()
    assert begin["tokens"] == answer["tokens"][:3]
    assert end["tokens"] == answer["tokens"][-3:]
    empty = server.post("/tokenize", {"prompt": "", "return_token_strs": True}).json()
    assert (empty["tokens"], empty["token_strs"]) == ([], [])


def test_a_text_is_bounded_by_the_tokens_that_it_may_make(server: Live) -> None:
    """A character may be four tokens."""
    error = error_of(server.post("/tokenize", {"prompt": "\U0001f701" * 1_100_000}))
    assert (error["param"], error["code"]) == ("prompt", "string_above_max_length")
    assert "4000000" in error["message"]
