"""Embeddings in the place of prompts: they are answered as the tokens that they are of, and nothing else is read."""

from __future__ import annotations

import base64
import io
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM

from tests.server.api.support import BASE, error_of
from tests.server.live import Live, live_server

PATH = "/v1/completions"
IDS = [list(range(5, 30)), list(range(40, 45))]
GREEDY: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, "logprobs": 1}


def saved(value: Any) -> str:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return base64.b64encode(buffer.getvalue()).decode()


def as_safetensors(tensor: torch.Tensor) -> str:
    return base64.b64encode(safetensors.torch.save({"x": tensor})).decode()


@pytest.fixture(scope="module")
def allowed(base: Path, packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    adapters = [(name, str(packages[name])) for name in ("lora", "prompt")]
    with live_server(base, tmp_path_factory.mktemp("embeds"), adapters=adapters, enable_prompt_embeds=True) as live:
        yield live


@pytest.fixture(scope="module")
def embeds(base: Path) -> list[torch.Tensor]:
    weight = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight.detach()
    return [weight[ids].clone() for ids in IDS]


@pytest.mark.parametrize("model", [BASE, "lora", "prompt"])
def test_answers_are_those_to_the_tokens(allowed: Live, embeds: list[torch.Tensor], model: str) -> None:
    body = {**GREEDY, "model": model, "n": 2}
    want = allowed.post(PATH, {**body, "prompt": IDS}).json()
    for _ in range(2):  # the second time from the prefix cache
        found = allowed.post(PATH, {**body, "prompt_embeds": list(map(saved, embeds))}).json()
        assert [choice["text"] for choice in found["choices"]] == [choice["text"] for choice in want["choices"]]
        assert found["usage"]["prompt_tokens"] == want["usage"]["prompt_tokens"]
    both = allowed.post(PATH, {**body, "prompt_embeds": saved(embeds[0]), "prompt": IDS[1], "return_token_ids": True})
    assert [choice["text"] for choice in both.json()["choices"]] == [choice["text"] for choice in want["choices"]]
    assert [choice["prompt_token_ids"] for choice in both.json()["choices"]] == [None, None, IDS[1], IDS[1]]


def test_equal_lengths_share_no_cache(allowed: Live, embeds: list[torch.Tensor]) -> None:
    for turn in range(2):
        one, other = (
            allowed.post(PATH, {**GREEDY, "prompt_embeds": saved(tensor)}).json()["choices"][0]["logprobs"]
            for tensor in (embeds[0], embeds[0].flip(0))
        )
        assert one["token_logprobs"] != other["token_logprobs"], turn


def test_streams_beams_and_long_prompts(allowed: Live, embeds: list[torch.Tensor]) -> None:
    with openai.OpenAI(base_url=f"{allowed.url}/v1", api_key="-", max_retries=0) as client:
        given: dict[str, Any] = {"model": BASE, "max_tokens": 6, "temperature": 0}
        prompt: Any = None
        stream = client.completions.create(
            prompt=prompt, stream=True, extra_body={"prompt_embeds": saved(embeds[0])}, **given
        )
        text = "".join(chunk.choices[0].text for chunk in stream)
        assert text == client.completions.create(prompt=IDS[0], **given).choices[0].text
    beams = {"use_beam_search": True, "n": 2, "max_tokens": 5}
    found = allowed.post(PATH, {**beams, "prompt_embeds": saved(embeds[1])}).json()["choices"]
    want = allowed.post(PATH, {**beams, "prompt": IDS[1]}).json()["choices"]
    assert [choice["text"] for choice in found] == [choice["text"] for choice in want]
    long = allowed.post(PATH, {"prompt_embeds": saved(torch.zeros(5000, 64))})
    assert error_of(long)["code"] == "context_length_exceeded"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_form_of_a_tensor_is_read(allowed: Live, embeds: list[torch.Tensor], dtype: torch.dtype) -> None:
    tensor = embeds[0].to(dtype)
    wide = torch.cat([tensor, tensor]).t().contiguous().t()[: len(tensor)]  # by columns, and only a part
    forms = [saved(tensor), saved(tensor[None]), saved(wide), saved(tensor.requires_grad_()), as_safetensors(tensor)]
    found = [allowed.post(PATH, {**GREEDY, "prompt_embeds": form}).json()["choices"] for form in forms]
    assert all(choices == found[0] for choices in found)


class Evil:
    """What a client may try."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit",)


def archive(content: bytes, compression: int = zipfile.ZIP_STORED) -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("x/data.pkl", content)
        file.writestr("x/data/0", bytes(256))
    return base64.b64encode(buffer.getvalue()).decode()


def tensor_of(*parts: Any) -> bytes:
    """A pickle of a tensor over 64 numbers, with such an offset, shape and strides."""
    buffer = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, found: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", 64) if isinstance(found, Evil) else None

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Evil(), *parts, False, ())

    Pickler(buffer, 2).dump(Tensor())
    return buffer.getvalue()


_HEADER = b'{"x":{"dtype":"F32","shape":[1,64],"data_offsets":[0,512]}}'
WRONG: dict[str, Any] = {
    "no base64": "invalid_base64",
    "nothing": "",
    "no file": base64.b64encode(b"x" * 100).decode(),
    "code": archive(pickle.dumps(Evil(), 2)),
    "code in a state": archive(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}U\x01xK\x01sb."),
    "a huge place": archive(b"\x80\x02K\x01r\xff\xff\xff\x7f."),
    "a huge text": archive(b"\x80\x02X\xff\xff\xff\x7fx."),
    "other things": saved({"a": torch.zeros(1, 64)}),
    "a parameter": saved(torch.nn.Parameter(torch.zeros(1, 64))),
    "integers": saved(torch.zeros(1, 64, dtype=torch.int64)),
    "compressed": archive(tensor_of(0, (1, 64), (64, 1)), zipfile.ZIP_DEFLATED),
    "beyond its numbers": archive(tensor_of(1, (1, 64), (64, 1))),
    "more than its numbers": archive(tensor_of(0, (10**9, 64), (0, 1))),
    "behind its numbers": archive(tensor_of(0, (1, 64), (64, -1))),
    "another width": saved(torch.zeros(2, 63)),
    "one dimension": saved(torch.zeros(64)),
    "no tokens": saved(torch.zeros(0, 64)),
    "no numbers": saved(torch.full((1, 64), float("nan"))),
    "two tensors": base64.b64encode(
        safetensors.torch.save({"x": torch.zeros(1, 64), "y": torch.zeros(1, 64)})
    ).decode(),
    "cut off": base64.b64encode(struct.pack("<Q", len(_HEADER)) + _HEADER + bytes(100)).decode(),
}


@pytest.mark.parametrize("what", WRONG)
def test_nothing_else_is_read(allowed: Live, what: str) -> None:
    assert error_of(allowed.post(PATH, {"prompt_embeds": WRONG[what]}))["param"] in ("prompt_embeds", "prompt")


@pytest.mark.parametrize(
    "change", [{"echo": True}, {"prompt_logprobs": 1}, {"suffix": "x"}, {"truncate_prompt_tokens": 2}]
)
def test_what_needs_tokens_is_refused(allowed: Live, change: dict[str, Any]) -> None:
    error = error_of(allowed.post(PATH, {"prompt_embeds": saved(torch.zeros(1, 64)), **change}))
    assert (error["param"], "not compatible" in error["message"]) == (next(iter(change)), True)


def test_an_operator_has_to_allow_them(server: Live) -> None:
    error = error_of(server.post(PATH, {"prompt_embeds": saved(torch.zeros(1, 64))}))
    assert error["param"] == "prompt_embeds"
    assert "--enable-prompt-embeds" in error["message"]
    assert server.post(PATH, {"prompt": "x", "prompt_embeds": [], "max_tokens": 1}).status_code == 200
