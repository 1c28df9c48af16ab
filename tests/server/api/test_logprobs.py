"""Log-probabilities: tokens, joined, are the text, and their bytes the text's; over HTTP on a SentencePiece base."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from server.api.logprobs import chat_logprobs, completion_logprobs, prompt_logprobs, ranked_prompt
from server.api.outputs import TokenEntry
from server.engine.messages import TokenLogprobs
from server.text.detokenize import IncrementalDecoder, OutputText, PlacedToken
from tests import oracle
from tests.factory import make_base
from tests.server.api.support import error_of, events
from tests.server.live import Live, live_server
from tests.server.text.tokenizer_kinds import KINDS, fast, number, processor

PIECES = processor("llama-2")
NUMBER = partial(number, PIECES)
TRUE, PLAIN, NEWLINE, LETTER, END = map(NUMBER, ("▁true", "true", "<0x0A>", "a", "</s>"))
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def entries(ids: list[int], context: list[int], *, skip: bool = True) -> tuple[str, list[TokenEntry]]:
    """Tokens that were chosen, each with all of ``ids`` as alternatives, and their text."""
    decoder = IncrementalDecoder(PIECES, context, skip_special_tokens=skip)
    placed = [decoder.place(token) for token in ids]
    top = tuple((token, -1.0 - n) for n, token in enumerate(dict.fromkeys(ids)))
    told = [
        TokenEntry(place.offset, TokenLogprobs(token, dict(top)[token], top), place.before, place.spelt)
        for token, (_, place) in zip(ids, placed, strict=True)
    ]
    return "".join(piece for piece, _ in placed) + decoder.flush(), told


# ---- the forms ----


@pytest.mark.parametrize("context", [[], [1], [1, TRUE]])
def test_tokens_are_the_text_wherever_it_begins(context: list[int]) -> None:
    shown, told = entries([TRUE, PLAIN, TRUE, NEWLINE, LETTER], context)
    found = completion_logprobs(told, 4, PIECES)
    assert "".join(found["tokens"]) == shown
    assert shown.startswith(" true") == (TRUE in context)
    for token, offset, top in zip(found["tokens"], found["text_offset"], found["top_logprobs"], strict=True):
        assert shown[offset : offset + len(token)] == token
        assert len(top) == 4
        assert token in top
    chat = chat_logprobs(told, 4, PIECES)["content"]
    assert [item["token"] for item in chat] == found["tokens"]
    assert b"".join(bytes(item["bytes"]) for item in chat).decode() == shown
    assert all(len({top["token"] for top in item["top_logprobs"]}) == 4 for item in chat)


def test_an_entry_that_says_nothing_of_its_place_stands_inside_a_text() -> None:
    bare = [TokenEntry(0, TokenLogprobs(token, -1.0)) for token in (TRUE, END)]
    assert completion_logprobs(bare, 0, PIECES)["tokens"] == [" true", ""]


def test_alternatives_that_read_alike_are_told_apart() -> None:
    byte = NUMBER("<0x61>")
    top = ((byte, -1.0), (LETTER, -2.0), (END, -3.0), (9999, -4.0))
    found = completion_logprobs([TokenEntry(0, TokenLogprobs(LETTER, -2.0, top))], 4, PIECES)
    assert found["top_logprobs"] == [{"<0x61>": -1.0, "a": -2.0, "</s>": -3.0, "token_id:9999": -4.0}]
    assert found["tokens"] == ["a"]


def test_parts_of_a_character_do_not_read_alike() -> None:
    parts = [NUMBER(f"<0x{byte:02X}>") for byte in "€".encode()]
    shown, told = entries(parts, [TRUE])
    found = completion_logprobs(told, 3, PIECES)
    assert shown == "€"
    assert found["tokens"] == [r"bytes:\xe2", r"bytes:\x82", r"bytes:\xac"]
    assert all(len(top) == 3 for top in found["top_logprobs"])
    assert [item["bytes"] for item in chat_logprobs(told, 0, PIECES)["content"]] == [[0xE2], [0x82], [0xAC]]


@pytest.mark.parametrize(("skip", "token"), [(True, ""), (False, "</s>")])
def test_a_special_token_reads_as_it_is_shown(skip: bool, token: str) -> None:
    shown, told = entries([TRUE, END, TRUE], [TRUE], skip=skip)
    found = completion_logprobs(told, 1, PIECES)
    assert shown == f" true{token} true"
    assert found["tokens"] == [" true", token, " true"]
    assert [bytes(item["bytes"]).decode() for item in chat_logprobs(told, 1, PIECES)["content"]] == found["tokens"]


def test_a_prompts_tokens_stand_where_its_text_has_them() -> None:
    prompt = "<s>true</s> true the"
    ids = PIECES.encode(prompt, add_special_tokens=True)
    values = [None, *(TokenLogprobs(token, -1.0) for token in ids[1:])]
    found = prompt_logprobs(ids, values, 1, PIECES, prompt_text=prompt)
    assert "".join(found["tokens"]) == prompt
    assert sorted(found["tokens"][:2]) == ["", "<s>"]  # the tokenizer puts one before every text
    assert found["top_logprobs"][0] is None
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        assert prompt[offset : offset + len(token)] == token


def test_a_ranked_prompt() -> None:
    values = [None, TokenLogprobs(TRUE, -5.0, ((PLAIN, -0.1), (TRUE, -5.0)), 2), TokenLogprobs(LETTER, -1e9, (), 7)]
    assert ranked_prompt([1, TRUE, LETTER], values, 1, PIECES) == [
        None,
        {
            str(TRUE): {"logprob": -5.0, "rank": 2, "decoded_token": " true"},
            str(PLAIN): {"logprob": -0.1, "rank": 1, "decoded_token": "true"},
        },
        {str(LETTER): {"logprob": -9999.0, "rank": 7, "decoded_token": "a"}},
    ]


# ---- over HTTP ----


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_base(tmp_path_factory.mktemp("pieces") / "pieces")
    tokenizer = fast(KINDS["llama-2"]())
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}</s>{% endfor %}"
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def live(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(base, tmp_path_factory.mktemp("data"), max_prompt_logprobs=1000, max_answer_logprobs=2000) as made:
        yield made
        made.wait_idle()


WORDS = dict.fromkeys(map(str, (TRUE, PLAIN, NEWLINE, LETTER, NUMBER("▁"), NUMBER("<0x62>"))), 60)
ANY = dict.fromkeys(map(str, (TRUE, END, NUMBER("<0xE2>"), NUMBER("<0x82>"), NUMBER("<0xAC>"), NUMBER("<0xC3>"))), 60)
SETTINGS: dict[str, Any] = {"model": "pieces", "max_tokens": 24, "seed": 1, "ignore_eos": True}


def complete(live: Live, **options: Any) -> dict[str, Any]:
    body = {**SETTINGS, "prompt": "the true", "logprobs": 3, "logit_bias": WORDS, **options}
    response = live.post(COMPLETIONS, body)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def converse(live: Live, **options: Any) -> dict[str, Any]:
    body = {**SETTINGS, "messages": [{"role": "user", "content": "true"}], "logprobs": True, "top_logprobs": 4}
    response = live.post(CHAT, {**body, "logit_bias": WORDS, **options})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def check(choice: dict[str, Any], top: int) -> None:
    """The columns of a completion are its text, in their places."""
    found, text = choice["logprobs"], choice["text"]
    assert "".join(found["tokens"]) == text
    for token, offset, told in zip(found["tokens"], found["text_offset"], found["top_logprobs"], strict=True):
        assert text[offset : offset + len(token)] == token
        assert told is None or (token in told and top <= len(told) <= top + 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("prompt", ["the true", [1], [TRUE, END]])
def test_a_completion(live: Live, prompt: Any, seed: int) -> None:
    choice = complete(live, prompt=prompt, seed=seed)
    check(choice, 3)
    assert {" true", "true", "\n", "b"} <= set(choice["logprobs"]["tokens"])


def test_zero_gives_the_chosen_token(live: Live) -> None:
    found = complete(live, logprobs=0, echo=True)["logprobs"]
    assert found["top_logprobs"][0] is None
    rows = zip(found["tokens"][1:], found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True)
    assert all(top == {token: value} for token, value, top in rows)
    item = converse(live, top_logprobs=0)["choices"][0]["logprobs"]["content"][0]
    assert (item["top_logprobs"], bool(item["token"])) == ([], True)


@pytest.mark.parametrize("seed", range(3))
def test_bytes_of_a_chat_are_its_content(live: Live, seed: int) -> None:
    choice = converse(live, seed=seed)["choices"][0]
    content, told = choice["message"]["content"], choice["logprobs"]["content"]
    assert "".join(item["token"] for item in told) == content
    assert b"".join(bytes(item["bytes"]) for item in told).decode() == content
    assert all(len({top["token"] for top in item["top_logprobs"]}) == 4 for item in told)


@pytest.mark.parametrize("skip", [True, False])
def test_bytes_of_any_tokens_at_all_are_the_content(live: Live, skip: bool) -> None:
    choice = converse(live, logit_bias=ANY, skip_special_tokens=skip)["choices"][0]
    spelt = b"".join(bytes(item["bytes"]) for item in choice["logprobs"]["content"])
    assert spelt.decode(errors="replace") == choice["message"]["content"]
    assert (b"</s>" in spelt) is not skip
    assert len({item["token"] for item in choice["logprobs"]["content"] if len(item["bytes"]) == 1}) > 2


@pytest.mark.parametrize("options", [{}, {"stop": "ue"}, {"stop": "r", "include_stop_str_in_output": True}])
def test_chunks_are_the_whole(live: Live, options: dict[str, Any]) -> None:
    options = {"logit_bias": {str(TRUE): 60, str(LETTER): 60}, "seed": 4, **options}
    whole = complete(live, echo=True, **options)
    check(whole, 3)
    body = {**SETTINGS, "prompt": "the true", "logprobs": 3, "echo": True, **options}
    choices = [chunk["choices"][0] for chunk in events(live, COMPLETIONS, body)]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    for column, values in whole["logprobs"].items():
        assert [*itertools.chain(*(choice["logprobs"][column] for choice in choices))] == values
    told = converse(live, **options)["choices"][0]
    assert "".join(item["token"] for item in told["logprobs"]["content"]) == told["message"]["content"]
    if "stop" in options:
        assert whole["logprobs"]["tokens"][-1] in (" tr", "tr")
        assert told["finish_reason"] == "stop"


def test_echo(live: Live) -> None:
    prompt = "<s>the</s> true"
    by_text = complete(live, prompt=prompt, echo=True)
    check(by_text, 3)
    assert by_text["text"].startswith(prompt)
    by_number = complete(live, prompt=PIECES.encode(prompt, add_special_tokens=True), echo=True)
    check(by_number, 3)
    assert by_number["text"].startswith("<s><s> the</s>")
    assert by_text["logprobs"]["token_logprobs"] == by_number["logprobs"]["token_logprobs"]
    assert complete(live, prompt=[1, TRUE], echo=True, max_tokens=0)["text"] == "<s> true"
    assert complete(live, prompt="", echo=True, max_tokens=0)["text"] == ""


def test_the_token_that_ends_a_completion_is_listed(live: Live) -> None:
    """Evaluation harnesses read the scores of a prompt as all but the last: ``[context:-1]``."""
    options = {"max_tokens": 1, "echo": True, "ignore_eos": False, "logit_bias": {str(END): 100}}
    for body in (options, {**options, "prompt": [1, TRUE, LETTER]}):
        choice = complete(live, **body)
        check(choice, 3)
        assert choice["finish_reason"] == "stop"
        assert choice["logprobs"]["tokens"][-1] == "" != choice["logprobs"]["tokens"][-2]
        assert choice["logprobs"]["text_offset"][-1] == len(choice["text"])
        streamed = [chunk["choices"][0] for chunk in events(live, COMPLETIONS, {**SETTINGS, "prompt": "the true",
                                                                                "logprobs": 3, **body})]  # fmt: skip
        assert [*itertools.chain(*(one["logprobs"]["tokens"] for one in streamed))] == choice["logprobs"]["tokens"]
    told = converse(live, max_tokens=1, ignore_eos=False, logit_bias={str(END): 100})["choices"][0]
    assert told["logprobs"]["content"] == []


def test_a_token_behind_a_broken_character_has_its_own_place(live: Live) -> None:
    letters = {str(TRUE): 60, str(NUMBER("<0xE2>")): 60}
    for stop in ([], ["ue"]):
        choice = complete(live, seed=2, logit_bias=letters, stop=stop)
        found, text = choice["logprobs"], choice["text"]
        assert "\ufffd tr" in text
        assert all(
            token.startswith("bytes:") or text[offset : offset + len(token)] == token
            for token, offset in zip(found["tokens"], found["text_offset"], strict=True)
        )


# ---- of a prompt, as vLLM has them ----


def test_prompt_logprobs(live: Live, base: Path) -> None:
    ids = [1, TRUE, LETTER, TRUE]
    choice = complete(live, prompt=ids, prompt_logprobs=2, logprobs=None)
    assert choice["logprobs"] is None
    first, *told = choice["prompt_logprobs"]
    assert first is None
    rows = oracle.logits(base, None, ids).log_softmax(-1)
    for row, token, ranked in zip(rows, ids[1:], told, strict=False):
        likeliest = row.topk(2).indices.tolist()
        assert set(ranked) == {str(token), *map(str, likeliest)}
        assert ranked[str(token)]["logprob"] == pytest.approx(float(row[token]), abs=1e-4)
        assert ranked[str(token)]["rank"] == int((row > row[token]).sum()) + 1
        assert [ranked[str(best)]["rank"] for best in likeliest] == [1, 2]
    assert told[0][str(TRUE)]["decoded_token"] == " true"
    both = complete(live, prompt=ids, prompt_logprobs=0, echo=True)
    assert [len(ranked) for ranked in both["prompt_logprobs"][1:]] == [1] * 3
    check(both, 3)


def test_prompt_logprobs_of_several_prompts_and_of_a_chat(live: Live) -> None:
    body = {**SETTINGS, "prompt": ["true", "true a"], "n": 2, "prompt_logprobs": 1}
    choices = live.post(COMPLETIONS, body).json()["choices"]
    assert [len(choice["prompt_logprobs"]) for choice in choices] == [2, 2, 4, 4]
    answer = converse(live, prompt_logprobs=1)
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert answer["prompt_logprobs"][0] is None
    assert converse(live)["prompt_logprobs"] is None
    assert complete(live)["prompt_logprobs"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "leave `stream` out"),
    ],
)
def test_prompt_logprobs_that_are_refused(live: Live, options: dict[str, Any], words: str) -> None:
    for path, asked in ((COMPLETIONS, {"prompt": "x"}), (CHAT, {"messages": [{"role": "user", "content": "x"}]})):
        assert words in str(error_of(live.post(path, {"model": "pieces", **asked, **options})))


@pytest.mark.parametrize(
    ("options", "asked"),
    [({"prompt_logprobs": 20, "n": 2}, 2 * 60 * 21), ({"logprobs": 5, "echo": True, "n": 3}, 3 * 60 * 6)],
)
def test_no_more_than_the_answer_can_hold(live: Live, options: dict[str, Any], asked: int) -> None:
    body = {"model": "pieces", "prompt": [LETTER] * 60, "max_tokens": 1}
    assert f"{asked} log-probabilities" in error_of(live.post(COMPLETIONS, {**body, **options}))["message"]


def test_a_whole_answer_is_bounded(live: Live) -> None:
    body = {**SETTINGS, "prompt": "the true", "logprobs": 4, "n": 4, "max_tokens": 101}
    error = error_of(live.post(COMPLETIONS, body))
    assert error["param"] == "logprobs"
    assert "2020 log-probabilities" in error["message"]
    assert "--max-answer-logprobs" in error["message"]
    assert live.post(COMPLETIONS, body | {"stream": True}).status_code == 200, "a stream is not held"
    assert live.post(COMPLETIONS, body | {"max_tokens": 100}).status_code == 200


def test_tokens_that_wait_for_text_are_not_looked_at_again_and_again(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A special token has no text: it is told with the next that has, or at the end."""
    looks, shows = [], OutputText.shows

    def counted(text: OutputText, place: PlacedToken) -> bool:
        looks.append(place)
        return shows(text, place)

    monkeypatch.setattr(OutputText, "shows", counted)
    choice = complete(live, logit_bias={str(END): 100}, max_tokens=60, logprobs=1, stop=None)
    assert len(choice["logprobs"]["tokens"]) == 60
    assert len(looks) < 180


# ---- named tokens, and all of them ----


def test_named_tokens(live: Live) -> None:
    ids = [LETTER, TRUE, NEWLINE]
    told = converse(live, top_logprobs=0, logprob_token_ids=ids, return_tokens_as_token_ids=True, max_tokens=3)
    plain = converse(live, top_logprobs=4, max_tokens=3, return_tokens_as_token_ids=True)
    for item, as_usual in zip(
        told["choices"][0]["logprobs"]["content"], plain["choices"][0]["logprobs"]["content"], strict=True
    ):
        assert (item["token"], item["logprob"]) == (as_usual["token"], as_usual["logprob"])
        assert {top["token"] for top in item["top_logprobs"]} == {f"token_id:{i}" for i in ids} | {item["token"]}
        values = [top["logprob"] for top in item["top_logprobs"]]
        assert values == sorted(values, reverse=True)
    choice = complete(live, logprobs=0, logprob_token_ids=[LETTER], max_tokens=2, return_tokens_as_token_ids=True)
    for token, top in zip(choice["logprobs"]["tokens"], choice["logprobs"]["top_logprobs"], strict=True):
        assert set(top) == {token, f"token_id:{LETTER}"}


def test_all_tokens(base: Path, tmp_path: Path) -> None:
    with live_server(base, tmp_path, max_logprobs=-1) as unbounded:
        size = unbounded.context.engine.info.vocab_size
        body = {**SETTINGS, "messages": [{"role": "user", "content": "true"}], "max_tokens": 1}
        answer = unbounded.post(CHAT, {**body, "logprobs": True, "top_logprobs": -1, "prompt_logprobs": -1}).json()
        assert len(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == size
        assert {len(row) for row in answer["prompt_logprobs"][1:]} == {size}
        choice = unbounded.post(COMPLETIONS, {**SETTINGS, "prompt": "a", "max_tokens": 1, "logprobs": 10**6}).json()
        assert len(choice["choices"][0]["logprobs"]["top_logprobs"][0]) == size
