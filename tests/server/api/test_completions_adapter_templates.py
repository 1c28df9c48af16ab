"""Adapters with a chat template or an end of turn of their own: used where the operator allows it, told otherwise."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from adapters.package.manifest import BaseRef, Manifest, encode_manifest
from bases.fingerprint import base_fingerprint, template_sha256
from tests.factory import CHAT_TEMPLATE, make_adapter
from tests.server.api.support import archive, error_of
from tests.server.live import Live, live_server

OWN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}[bot]{% endif %}"
)
PARTS = OWN.replace("{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}{{ eos_token }}")
EOT, END = 256, 258  # <|endoftext|>, <|im_end|>
MESSAGES = [{"role": "user", "content": "Hi"}]
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def allowing(base: Path, packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server whose operator lets adapters bring templates."""
    data, settings = tmp_path_factory.mktemp("data"), dict[str, Any](adapter_template_seconds=0.5)
    engine = {"adapter_templates": True}
    with live_server(base, data, adapters=[("lora", str(packages["lora"]))], engine=engine, **settings) as live:
        yield live
        live.wait_idle()


@pytest.fixture
def refusing(server: Live) -> Iterator[Live]:
    """A server that lets them not; it is the other tests' as well, so nothing stays."""
    before = set(server.on_loop(server.context.registry.known_names))
    yield server
    with server.http() as http:
        for name in set(server.on_loop(server.context.registry.known_names)) - before:
            http.delete(f"/v1/adapters/{name}")


@pytest.fixture
def package(packages: dict[str, Path], tmp_path: Path) -> Path:
    """A package to be added to."""
    return Path(shutil.copytree(packages["lora-2"], tmp_path / "package"))


def upload(live: Live, package: Path, name: str, **query: Any) -> dict[str, Any]:
    data = archive(package, package.parent)
    with live.http() as http:
        answer = http.put(f"/v1/adapters/{name}", files={"file": ("p.tar", data)}, params=query)
    assert answer.status_code in (200, 201), answer.text
    body: dict[str, Any] = answer.json()
    return body


def read(live: Live, model: str, messages: list[dict[str, Any]] | None = None, **fields: Any) -> str:
    """What the model reads of a conversation; a chat completion reads as many tokens."""
    body = {"model": model, "messages": messages or MESSAGES, **fields}
    tokens = live.post("/tokenize", body).json()["tokens"]
    chat = live.post("/v1/chat/completions", {**body, "max_tokens": 1})
    assert chat.status_code == 200, chat.text
    assert chat.json()["usage"]["prompt_tokens"] == len(tokens)
    text: str = live.post("/detokenize", {"model": model, "tokens": tokens}).json()["prompt"]
    return text


def ending(live: Live, model: str, token: int, **fields: Any) -> tuple[str, int]:
    """How an output ends that consists of ``token`` if nothing ends it, and of how many."""
    bias = {str(token): 100}
    body = {"model": model, "prompt": "x", "max_tokens": 3, "logit_bias": bias, "temperature": 0, **fields}
    answer = live.post("/v1/completions", body).json()
    choice = answer["choices"][0]
    assert choice["text"] == ""
    return choice["finish_reason"], answer["usage"]["completion_tokens"]


BASES = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_where_it_is_not_allowed_the_upload_is_told(refusing: Live, package: Path) -> None:
    (package / "chat_template.jinja").write_text(OWN)
    warnings = upload(refusing, package, "told")["warnings"]
    assert any(
        "chat template of its own, which is not used" in line and "--adapter-templates" in line for line in warnings
    )
    assert read(refusing, "told") == BASES
    shutil.rmtree(package / "chat_template.jinja", ignore_errors=True)
    (package / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    assert upload(refusing, package, "told-2")["warnings"] == []


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template.jinja": OWN},
        {"tokenizer_config.json": json.dumps({"chat_template": OWN})},
        {"tokenizer_config.json": json.dumps({"chat_template": [{"name": "default", "template": OWN}]})},
    ],
)
def test_where_it_is_allowed_it_is_used(allowing: Live, package: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (package / name).write_text(content)
    upload(allowing, package, "own")
    assert read(allowing, "own") == "[user]Hi<|endoftext|>[bot]"
    assert read(allowing, "own", add_generation_prompt=False) == "[user]Hi<|endoftext|>"
    prefilled = [*MESSAGES, {"role": "assistant", "content": "Sure, "}]
    assert read(allowing, "own", prefilled, continue_final_message=True) == "[user]Hi<|endoftext|>[assistant]Sure, "
    assert read(allowing, allowing.context.base_name) == read(allowing, "lora") == BASES


def test_its_form_and_its_special_tokens_are_its_own(allowing: Live, package: Path) -> None:
    (package / "chat_template.jinja").write_text(PARTS)
    (package / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    upload(allowing, package, "parts")
    said: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    end = "<|endoftext|>" * 2
    assert read(allowing, "parts", said) == f"[system]Be brief.{end}[user]Hi{end}[bot]"


def test_a_template_belongs_to_its_version(allowing: Live, package: Path) -> None:
    """Equal weights, three templates: three versions; to roll back is to have the older one again."""
    (package / "chat_template.jinja").write_text(OWN)
    assert upload(allowing, package, "turns")["version"] == 1
    assert upload(allowing, package, "turns")["version"] == 1, "nothing has changed"
    (package / "chat_template.jinja").write_text(OWN.replace("[bot]", "[me]"))
    assert upload(allowing, package, "turns", activate=False)["version"] == 2
    assert read(allowing, "turns").endswith("[bot]")
    assert read(allowing, "turns@2").endswith("[me]")
    with allowing.http() as http:
        assert http.patch("/v1/adapters/turns", json={"version": 2}).status_code == 200
        assert read(allowing, "turns").endswith("[me]")
        assert http.post("/v1/adapters/turns/rollback").status_code == 200
    assert read(allowing, "turns").endswith("[bot]")


def test_a_manifest_of_that_template_is_no_mismatch(allowing: Live, package: Path, base: Path, tmp_path: Path) -> None:
    manifest = Manifest(
        kind="lora",
        base=BaseRef("tiny", base_fingerprint(base)),
        created=datetime.now(UTC),
        chat_template_sha256=template_sha256(OWN),
    )
    (package / "hotswap.json").write_bytes(encode_manifest(manifest))
    with allowing.http() as http:
        files = {"file": ("p.tar", archive(package, tmp_path))}
        assert "another chat template" in error_of(http.put("/v1/adapters/trained", files=files))["message"]
    (package / "chat_template.jinja").write_text(OWN)
    upload(allowing, package, "trained")
    assert read(allowing, "trained") == "[user]Hi<|endoftext|>[bot]"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 'a' * 10**10 }}", "MB of memory"),
        (ENDLESS, "takes longer than the 0.5 seconds"),
        ("{{ 'a' * (9 * 2**20) }}", "more than the 8388608 characters"),
        ("{{ range(10**9) }}", "Range too big"),
        ("{{ raise_exception('never') }}", "refuses these messages: never"),
        ("{{ messages + 1 }}", "cannot render these messages: can only concatenate list"),
    ],
)
def test_a_template_that_fails_is_told_to_its_clients_alone(
    allowing: Live, package: Path, template: str, words: str
) -> None:
    (package / "chat_template.jinja").write_text(template)
    warnings = upload(allowing, package, "bad")["warnings"]
    assert any("its chat template fails on a short conversation" in line and words in line for line in warnings)
    answers: list[Any] = []
    asking = threading.Thread(
        target=lambda: answers.append(allowing.post("/v1/chat/completions", {"model": "bad", "messages": MESSAGES}))
    )
    asking.start()
    bystander = {"model": "lora", "messages": MESSAGES, "max_tokens": 2}
    served = 0
    while asking.is_alive() or not served:
        assert allowing.post("/v1/chat/completions", bystander).status_code == 200
        served += 1
    error = error_of(answers[0])
    assert words in error["message"]
    assert error["param"] == "messages"
    assert allowing.post("/v1/completions", {"model": "bad", "prompt": "x", "max_tokens": 1}).status_code == 200


# ---- ends ----


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"eos_token": "<|endoftext|>"}},
        {"tokenizer_config.json": {"eos_token": {"content": "<|endoftext|>"}}},
        {"special_tokens_map.json": {"eos_token": "<|endoftext|>"}},
        {"generation_config.json": {"eos_token_id": [EOT, 10**12]}},
    ],
)
def test_an_output_ends_at_the_adapters_own_end(refusing: Live, package: Path, files: dict[str, Any]) -> None:
    for name, content in files.items():
        (package / name).write_text(json.dumps(content))
    warnings = upload(refusing, package, "ends")["warnings"]
    assert any("'<|endoftext|>'" in line for line in warnings)
    assert ending(refusing, "ends", EOT) == ending(refusing, "ends", END) == ("stop", 1)
    assert (
        ending(refusing, "ends", EOT, ignore_eos=True)
        == ending(refusing, "ends", END, ignore_eos=True)
        == ("length", 3)
    )
    assert ending(refusing, "lora", EOT) == ("length", 3)


def test_an_output_ends_where_its_template_ends_turns(allowing: Live, package: Path) -> None:
    (package / "chat_template.jinja").write_text(OWN)
    upload(allowing, package, "turned")
    assert ending(allowing, "turned", EOT) == ("stop", 1)
    body = {"model": "turned", "messages": MESSAGES, "logit_bias": {str(EOT): 100}, "temperature": 0}
    choice = allowing.post("/v1/chat/completions", body).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")


def test_an_output_ends_where_a_template_that_may_not_run_ends_turns(refusing: Live, package: Path) -> None:
    (package / "chat_template.jinja").write_text(OWN)
    warnings = upload(refusing, package, "unused")["warnings"]
    assert any("'<|endoftext|>', unlike the base" in line for line in warnings)
    assert ending(refusing, "unused", EOT) == ("stop", 1)
    assert read(refusing, "unused") == BASES
    (package / "chat_template.jinja").write_text(ENDLESS)
    assert not any("unlike the base" in line for line in upload(refusing, package, "endless")["warnings"])


def test_rows_of_the_base_that_no_tokenizer_names_are_told(refusing: Live, base: Path, tmp_path: Path) -> None:
    """The base has 320 rows and its tokenizer 259 tokens: what is trained there needs a name."""
    config = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[300, 7, 259], task_type="CAUSAL_LM")
    package = make_adapter(base, tmp_path / "rows", config, std=0.3)
    (warning,) = upload(refusing, package, "rows")["warnings"]
    assert "rows for 2 token ids (259, 300) that neither the base's tokenizer nor the package names" in warning
    named = {"<a>": 259, "<b>": 260}
    (package / "added_tokens.json").write_text(json.dumps(named))
    (warning,) = upload(refusing, package, "rows-2")["warnings"]
    assert "rows for 1 token ids (300)" in warning


def test_an_end_that_is_no_token_is_told(refusing: Live, package: Path) -> None:
    (package / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|nobody|>"}))
    warnings = upload(refusing, package, "unknown-end")["warnings"]
    assert any("'<|nobody|>', which the base's does not know" in line for line in warnings)
    (package / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    assert upload(refusing, package, "same-end")["warnings"] == []


def test_a_request_gives_no_template(allowing: Live) -> None:
    body = {"model": "lora", "messages": MESSAGES, "chat_template": "{{ 'a' * 10**10 }}"}
    assert "chat_template" in error_of(allowing.post("/v1/chat/completions", body))["message"]


def test_tools_are_written_and_calls_read_as_its_template_says(allowing: Live, package: Path) -> None:
    (package / "chat_template.jinja").write_text("{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}" + OWN)
    upload(allowing, package, "hermes")
    call = '{"name": "f", "arguments": {}}'
    tools = [{"type": "function", "function": {"name": "f"}}]
    for model, said in (("hermes", f"<tool_call>{call}</tool_call>"), ("lora", call)):
        body = {"model": model, "messages": MESSAGES, "tools": tools, "max_tokens": 80}
        required = {"tool_choice": "required", "parallel_tool_calls": False}
        for fields in ({"structured_outputs": {"choice": [said]}}, required):
            message = allowing.post("/v1/chat/completions", {**body, **fields}).json()["choices"][0]["message"]
            assert [one["function"]["name"] for one in message["tool_calls"]] == ["f"]
        assert ("You can call these functions" in read(allowing, model, tools=tools)) == (model == "lora")
