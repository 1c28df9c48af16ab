"""Beam search over HTTP: transformers' own outputs, through every adapter."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from server.text.tokenizer import TextProcessor
from tests import oracle
from tests.server.api.raw import connect, post
from tests.server.api.support import error_of
from tests.server.live import Live, slow_steps

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PROMPT = "who? who are you, and who am I?"


def beams(base: Path, package: Path | None, width: int, told: int, new: int, **options: Any) -> list[str]:
    """What transformers searches."""
    text = TextProcessor.load(base)
    ids = text.encode(PROMPT, add_special_tokens=True)
    model = oracle._model(base, package, "none")
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft's prompts, about positions
        found = model.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
            num_beams=width, num_return_sequences=told, max_new_tokens=new, pad_token_id=0, **options,
        )  # fmt: skip
    return [text.decode(row[len(ids) :].tolist(), skip_special_tokens=True) for row in found]


def body(**options: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "max_tokens": 20, "use_beam_search": True, **options}


def texts(answer: dict[str, Any]) -> list[str]:
    assert [choice["index"] for choice in answer["choices"]] == [*range(len(answer["choices"]))]
    return [choice["text"] for choice in answer["choices"]]


@pytest.mark.parametrize("model", ["tiny", "lora", "prefix", "prompt"])
def test_outputs_are_those_of_transformers(server: Live, base: Path, packages: dict[str, Path], model: str) -> None:
    answer = server.post(TEXT, body(model=model, best_of=4, n=2)).json()
    assert texts(answer) == beams(base, packages.get(model), 4, 2, 20)
    assert answer["usage"]["completion_tokens"] >= 4


@pytest.mark.parametrize("penalty", [0.0, 2.0])
def test_lengths_and_early_ends(server: Live, base: Path, packages: dict[str, Path], penalty: float) -> None:
    likely = TextProcessor.load(base).encode("o", add_special_tokens=False)[-1]
    options = {"length_penalty": penalty, "early_stopping": penalty > 1}
    answer = server.post(TEXT, body(model="lora", n=3, stop_token_ids=[likely], **options)).json()
    ends = [*server.context.engine.info.eos_token_ids, likely]
    assert texts(answer) == beams(base, packages["lora"], 3, 3, 20, eos_token_id=ends, **options)


def test_prompts_and_logprobs(server: Live) -> None:
    answer = server.post(TEXT, body(prompt=["a b c", PROMPT, "a b c"], n=2, logprobs=1, ignore_eos=True)).json()
    found = texts(answer)
    assert len(found) == 6
    assert found[:2] == found[4:]
    assert found[0] != found[1]
    for choice in answer["choices"]:
        assert choice["finish_reason"] == "length"
        assert len(choice["logprobs"]["tokens"]) == 20
    sums = [sum(choice["logprobs"]["token_logprobs"]) for choice in answer["choices"]]
    assert sums[2] >= sums[3]


def test_chats(server: Live) -> None:
    asked = {"messages": [{"role": "user", "content": "who?"}], "max_tokens": 6, "use_beam_search": True}
    one, two = (server.post(CHAT, {**asked, "best_of": 3, "n": n}).json()["choices"] for n in (1, 3))
    assert (len(one), len(two)) == (1, 3)
    assert one[0]["message"] == two[0]["message"]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"stream": True}, "stream"),
        ({"stop": "a"}, "stop"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"n": 33}, "use_beam_search"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"guided_regex": "a"}, "use_beam_search"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"use_beam_search": False, "length_penalty": 2.0}, "length_penalty"),
        ({"use_beam_search": False, "early_stopping": True}, "early_stopping"),
        ({"num_beams": 4}, "num_beams"),
    ],
)
def test_what_is_refused(server: Live, options: dict[str, Any], param: str) -> None:
    assert error_of(server.post(TEXT, body(**options)))["param"] == param


def test_who_leaves_ends_the_search(server: Live) -> None:
    steps = server.stats.steps
    with slow_steps():
        with connect(server) as sock:
            sock.sendall(post(TEXT, body(max_tokens=1500, n=4, ignore_eos=True)))
            server.wait(lambda: server.stats.steps > steps + 3, "the search to run")
        server.wait_idle()
    assert server.stats.steps < steps + 1000, "it ran to its end"


def test_a_timeout_ends_the_search(server: Live) -> None:
    with slow_steps():
        error_of(server.post(TEXT, body(max_tokens=1500, n=4, ignore_eos=True, timeout=0.2)), 408)
    server.wait_idle()
