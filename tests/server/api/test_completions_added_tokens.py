"""Adapters that bring tokens of their own, over HTTP: read, written, and unknown to everybody else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests import oracle, resized
from tests.factory import make_adapter, make_base
from tests.server.api.support import archive
from tests.server.live import Live, live_server

VOCAB = 259  # as many as the tokenizer has: what is added lies beyond
TOOL, CALL = VOCAB, VOCAB + 1
PROMPT = "go <call> now<|tool|>!"


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("added") / "tiny", vocab_size=VOCAB)


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that the adapter was trained with: one special token more, and one that is not."""
    made: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(base)
    made.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    made.add_tokens(["<call>"])
    return made


@pytest.fixture(scope="module")
def package(base: Path, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packages") / "tools"
    config = lora(trainable_token_indices=[TOOL, CALL])
    resized.save(base, path, config, VOCAB + 2, std=0.3, save_embedding_layers=False)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("packages") / "plain", lora(), std=0.3)


@pytest.fixture(scope="module")
def live(base: Path, package: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    adapters = (("tools", str(package)), ("plain", str(plain)))
    with live_server(base, tmp_path_factory.mktemp("data"), adapters=adapters) as server:
        yield server
        server.wait_idle()


def complete(live: Live, model: str, prompt: str | list[int] = PROMPT, **options: Any) -> dict[str, Any]:
    body = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True, **options}
    response = live.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def refusal(live: Live, model: str, **options: Any) -> str:
    response = live.post("/v1/completions", {"model": model, "prompt": "x", "max_tokens": 2, **options})
    assert response.status_code == 400, response.text
    message: str = response.json()["error"]["message"]
    return message


def wanted(base: Path, package: Path, tokenizer: PreTrainedTokenizerFast, count: int = 12) -> list[int]:
    """What peft answers to PROMPT, in the tokens of the adapter's own tokenizer."""
    tokens: list[int] = tokenizer.encode(PROMPT)
    start = len(tokens)
    for _ in range(count):
        tokens.append(int(resized.logits(base, package, VOCAB + 2, tokens)[-1].argmax()))
    return tokens[start:]


def test_what_it_reads_and_writes(live: Live, base: Path, package: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = wanted(base, package, tokenizer)
    assert {TOOL, CALL} & set(ids), "the test wants an adapter that writes its tokens"
    found = complete(live, "tools", skip_special_tokens=False)
    assert found["choices"][0]["text"] == tokenizer.decode(ids, skip_special_tokens=False)
    assert found["usage"]["prompt_tokens"] == len(tokenizer.encode(PROMPT))
    assert complete(live, "tools")["choices"][0]["text"] == tokenizer.decode(ids, skip_special_tokens=True)


def test_others_beside_it_know_nothing_of_them(live: Live, base: Path, plain: Path) -> None:
    text = AutoTokenizer.from_pretrained(base)
    prompt = text.encode(PROMPT)
    with ThreadPoolExecutor(6) as pool:
        names = ["tools", None, "plain"] * 2
        answers = list(pool.map(lambda name: complete(live, name or base.name), names))
    for name, answer in zip(names, answers, strict=True):
        if name != "tools":
            ids = oracle.greedy(base, plain if name else None, prompt, 12)
            assert answer["choices"][0]["text"] == text.decode(ids, skip_special_tokens=True)
            assert answer["usage"]["prompt_tokens"] == len(prompt)


def test_token_ids_are_known_to_the_adapter_alone(live: Live, base: Path) -> None:
    forced = complete(live, "tools", [CALL, TOOL, 5], logit_bias={str(CALL): 100}, max_tokens=3)
    assert forced["choices"][0]["text"] == "<call>" * 3
    for model in (base.name, "plain"):
        assert f"token id {CALL} is out of vocabulary, which has {VOCAB}" in refusal(live, model, prompt=[CALL])
        assert f"token id {CALL}" in refusal(live, model, logit_bias={str(CALL): 1})
    assert f"{CALL + 1} is out of vocabulary, which has {VOCAB + 2}" in refusal(live, "tools", prompt=[CALL + 1])


def test_a_token_of_its_own_may_end_its_outputs(live: Live, base: Path, package: Path, tmp_path: Path) -> None:
    ending = Path(shutil.copytree(package, tmp_path / "ending"))
    config = json.loads((ending / "tokenizer_config.json").read_text())
    (ending / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<|tool|>"}))
    with live.http() as http:
        answer = http.put("/v1/adapters/ending", files={"file": ("p.tar", archive(ending, tmp_path))})
        assert any("'<|tool|>'" in warning for warning in answer.json()["warnings"]), answer.text
        body: dict[str, Any] = {"logit_bias": {str(TOOL): 100}, "ignore_eos": False, "max_tokens": 3}
        assert complete(live, "ending", **body)["choices"][0]["finish_reason"] == "stop"
        assert complete(live, "tools", **body)["choices"][0]["finish_reason"] == "length"
        http.delete("/v1/adapters/ending")


def test_penalties_sampling_and_logprobs(live: Live, base: Path) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "top_k": 5, "top_p": 0.9, "frequency_penalty": 0.5}
    options |= {"repetition_penalty": 1.1, "seed": 3, "logprobs": 4, "echo": True}
    names = ["tools", base.name, "plain"]
    alone = [complete(live, name, **options) for name in names]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda name: complete(live, name, **options), names))
    for one, other in zip(alone, together, strict=True):
        assert one["choices"][0]["text"] == other["choices"][0]["text"]
    assert "<call>" in alone[0]["choices"][0]["logprobs"]["tokens"]
    assert "<call>" not in alone[1]["choices"][0]["logprobs"]["tokens"]
    assert all(value is None or value > -9999 for value in alone[0]["choices"][0]["logprobs"]["token_logprobs"])


def test_streams_and_stop_strings(live: Live) -> None:
    body = {"model": "tools", "prompt": PROMPT, "max_tokens": 4, "stream": True, "logit_bias": {str(CALL): 100}}
    with live.http() as http, http.stream("POST", "/v1/completions", json=body) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: {")]
    text = "".join(choice["text"] for line in lines for choice in json.loads(line)["choices"])
    assert text == "<call>" * 4
    stopped = complete(live, "tools", logit_bias={str(CALL): 100}, stop=["ll>"])["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == ("<ca", "stop")


def test_tokenize_and_detokenize(live: Live, base: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.encode(PROMPT)
    assert live.post("/tokenize", {"model": "tools", "prompt": PROMPT}).json()["tokens"] == ids
    assert live.post("/detokenize", {"model": "tools", "tokens": ids}).json()["prompt"] == PROMPT
    assert CALL not in live.post("/tokenize", {"model": base.name, "prompt": PROMPT}).json()["tokens"]


def test_chat(live: Live, tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "use <call>"}]
    body = {"model": "tools", "messages": messages, "max_tokens": 2, "logit_bias": {str(CALL): 100}}
    found = live.post("/v1/chat/completions", body).json()
    assert found["choices"][0]["message"]["content"] == "<call><call>"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert CALL in ids
    assert found["usage"]["prompt_tokens"] == len(ids)


# ---- packages ----


def upload(live: Live, name: str, package: Path, path: Path, **fields: str) -> Any:
    from adapters.package.archive import pack

    pack(package, path)
    with live.http() as http:
        return http.post("/v1/adapters", files={"file": path.read_bytes()}, data={"name": name, **fields})


def renamed(package: Path, target: Path, old: str, new: str) -> Path:
    shutil.copytree(package, target)
    file = target / "tokenizer.json"
    text = file.read_text()
    quoted = old.startswith('"')
    file.write_text(text.replace(old, new) if quoted else text.replace(json.dumps(old), json.dumps(new)))
    return target


def test_another_tokenizer_beside_the_same_weights_is_another_version(
    live: Live, package: Path, tmp_path: Path
) -> None:
    assert upload(live, "renamed", package, tmp_path / "1.tar").json()["version"] == 1
    assert upload(live, "renamed", package, tmp_path / "2.tar").json()["version"] == 1
    other = renamed(package, tmp_path / "other", "<call>", "<shout>")
    assert upload(live, "renamed", other, tmp_path / "3.tar").status_code == 409
    assert upload(live, "renamed", other, tmp_path / "3.tar", replace="true").json()["version"] == 2
    answer = complete(live, "renamed", "<shout>", logit_bias={str(CALL): 100}, max_tokens=1)
    assert answer["choices"][0]["text"] == "<shout>"
    assert answer["usage"]["prompt_tokens"] == 1


MISFITS = {
    "another text": (
        "<|im_start|>",
        "<|begin|>",
        "257 is '<|begin|>' in the adapter's tokenizer, '<|im_start|>' in the",
    ),
    "another number": (
        "<call>",
        "A",
        "token 260 is 'A' in the adapter's tokenizer, and has the number 32 in the base's",
    ),
    "a hole": ('"id": 260', '"id": 261', "has the number 261, but comes as number 260"),
    "twice": ("<call>", "<|tool|>", "2 added tokens with the text"),
    "empty": ("<call>", "", "tokenizer.json: Expected `str` of length >= 1"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_tokenizer_that_does_not_fit(live: Live, package: Path, tmp_path: Path, name: str) -> None:
    old, new, words = MISFITS[name]
    answer = upload(live, "misfit", renamed(package, tmp_path / "p", old, new), tmp_path / "p.tar")
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def test_a_package_without_its_tokenizer_is_known_by_numbers(live: Live, package: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(package, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    answer = upload(live, "bare", bare, tmp_path / "bare.tar")
    assert answer.status_code == 201
    assert "has 2 rows more than the base's, and the package names no token" in " ".join(answer.json()["warnings"])
    answer = complete(live, "bare", [CALL], logit_bias={str(CALL): 100}, max_tokens=2, logprobs=0)
    assert answer["choices"][0]["text"] == ""
    assert answer["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("added_tokens.json", {"<|tool|>": TOOL, "<call>": CALL}),
        (
            "tokenizer_config.json",
            {
                "added_tokens_decoder": {
                    str(TOOL): {"content": "<|tool|>", "special": True},
                    str(CALL): {"content": "<call>"},
                }
            },
        ),
    ],
)
def test_tokens_named_by_another_file_of_the_tokenizer(
    live: Live, package: Path, tmp_path: Path, file: str, content: Any
) -> None:
    other = shutil.copytree(package, tmp_path / "other")
    for known in ("tokenizer.json", "tokenizer_config.json"):
        (other / known).unlink()
    (other / file).write_text(json.dumps(content))
    name = f"named-{file}"  # special or not is a matter of content: these are two packages
    answer = upload(live, name, other, tmp_path / "other.tar")
    assert answer.status_code == 201, answer.text
    assert answer.json()["warnings"] == []
    found = complete(live, name, "<call>", logit_bias={str(CALL): 100}, max_tokens=2)
    assert (found["choices"][0]["text"], found["usage"]["prompt_tokens"]) == ("<call><call>", 1)
