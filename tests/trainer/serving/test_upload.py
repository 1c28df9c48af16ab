"""Publishing into a real server."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from peft import LoraConfig

from adapters.errors import PackageError
from adapters.package.reading import read_package
from tests.factory import make_adapter, make_base
from tests.server.live import Live, live_server
from tests.trainer.support import make_config
from trainer.commands.publish import publish as publish_command
from trainer.errors import PublishError
from trainer.run import train
from trainer.serving.upload import publish


@pytest.fixture(scope="module")
def server(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(tiny_base, tmp_path_factory.mktemp("data"), admin_key="secret") as live:
        yield live


@pytest.fixture(scope="module")
def packages(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained package of each method."""
    out = {}
    for method in ("lora", "prefix", "prompt"):
        config = make_config(tmp_path_factory.mktemp(method), tiny_base, f"method={method}", "max_steps=2")
        package = train(config).package
        assert package is not None
        out[method] = package
    return out


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Some other web server."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt"])
def test_a_trained_package_is_served_and_replaced(server: Live, packages: dict[str, Path], method: str) -> None:
    sent: list[tuple[int, int]] = []
    name = f"my-{method}"
    first = publish(
        packages[method], server.url, name, admin_key="secret", progress=lambda done, total: sent.append((done, total))
    )
    assert (first.name, first.version, first.digest) == (name, 1, read_package(packages[method]).digest)
    assert sent[-1][0] == sent[-1][1] > 0
    body = {"model": name, "messages": [{"role": "user", "content": "red"}], "max_tokens": 2}
    assert server.post("/v1/chat/completions", body).status_code == 200

    other = packages["prompt" if method == "lora" else "lora"]
    with pytest.raises(PublishError, match=f"refused the adapter \\(409\\): the adapter '{name}' exists"):
        publish(other, server.url, name, admin_key="secret")
    second = publish(other, server.url + "/v1/", name, replace=True, admin_key="secret")
    assert (second.version, second.digest) == (2, read_package(other).digest)


def test_the_command_says_what_is_served(
    server: Live, packages: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(packages["lora"]), "--server", server.url, "--as", "by-command"]
    assert publish_command(arguments) == 1
    assert "hotswap: the server refused the adapter (401): " in capsys.readouterr().err
    monkeypatch.setenv("HOTSWAP_ADMIN_KEY", "secret")
    assert publish_command(arguments) == 0
    digest = read_package(packages["lora"]).digest
    assert capsys.readouterr().out == f"published by-command version 1  digest {digest}\n"


def test_a_share_of_the_requests_is_enough(
    server: Live, packages: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--url", server.url, "--as", "shared", "--admin-key", "secret", "--quiet"]
    assert publish_command([str(packages["lora"]), *options]) == 0
    assert publish_command([str(packages["prefix"]), *options, "--canary", "5%"]) == 0
    assert "\nshared@2 gets 5% of the requests to shared  digest " in capsys.readouterr().out
    assert publish_command([str(packages["lora"]), *options, "--canary", "5%"]) == 0
    assert capsys.readouterr().out.startswith("published shared version 1  ")


@pytest.mark.parametrize("form", ["zip", "tar", "gztar", "weights"])
def test_a_package_of_every_form(
    server: Live, packages: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    package = packages["lora"]
    path = package / "adapter_model.safetensors"
    if form != "weights":
        path = Path(shutil.make_archive(str(tmp_path / "package"), form, package.parent, package.name))
    arguments = [str(path), "--server", server.url, "--as", f"form-{form}", "--admin-key", "secret", "--quiet"]
    assert publish_command(arguments) == 0
    digest = read_package(package).digest
    assert capsys.readouterr().out == f"published form-{form} version 1  digest {digest}\n"


def test_what_is_no_package_is_one_line(server: Live, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04nonsense")
    (tmp_path / "weights.safetensors").write_bytes(b"{}")
    for name, words in {"bad.zip": "", "weights.safetensors": "not an archive", "nowhere": "neither"}.items():
        arguments = [str(tmp_path / name), "--server", server.url, "--as", "none", "--admin-key", "secret", "--quiet"]
        assert publish_command(arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("hotswap: ")
        assert words in line


def test_a_package_for_another_base_is_refused_in_the_servers_words(server: Live, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=5, attention_bias=True, mlp_bias=True)
    package = train(make_config(tmp_path, other, "max_steps=1")).package
    assert package is not None
    with pytest.raises(PublishError, match=r"refused the adapter .*base"):
        publish(package, server.url, "foreign", admin_key="secret")


def test_an_unsound_package_is_not_sent(packages: dict[str, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(packages["lora"], tmp_path / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(PackageError):
        publish(broken, "http://127.0.0.1:9", "broken")
    with pytest.raises(PackageError, match="cannot name an adapter"):
        publish(packages["lora"], "http://127.0.0.1:9", "../up")


def test_servers_that_are_not_there_or_not_ours_are_said_so(packages: dict[str, Path]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(PublishError, match="cannot be reached"):
        publish(packages["lora"], url, "a")
    for bad in ("localhost:8000", "http://", "ftp://x"):
        with pytest.raises(PublishError):
            publish(packages["lora"], bad, "a")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as plain:
        threading.Thread(target=plain.serve_forever, daemon=True).start()
        with pytest.raises(PublishError, match=r"refused the adapter \(501\)|broke off"):
            publish(packages["lora"], f"http://127.0.0.1:{plain.server_port}", "a")
        plain.shutdown()


def test_an_adapter_without_effect_needs_leave(
    server: Live, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    package = make_adapter(tiny_base, tmp_path / "noop", config, std=0.0)
    command = [str(package), "--server", server.url, "--as", "idle", "--admin-key", "secret", "--quiet"]
    assert publish_command(command) == 1
    assert "answers exactly as the base does" in capsys.readouterr().err
    assert publish_command([*command, "--allow-noop"]) == 0
    assert "warning: the adapter answers exactly as the base does" in capsys.readouterr().err


def test_a_package_of_another_end_token_is_refused(server: Live, packages: dict[str, Path], tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(packages["lora"], package)
    manifest = json.loads((package / "hotswap.json").read_text())
    assert manifest["special_tokens"]["eos_token"] == "<|im_end|>"
    manifest["special_tokens"]["eos_token"] = "</s>"
    (package / "hotswap.json").write_text(json.dumps(manifest))
    with pytest.raises(PublishError, match="trained with the eos_token '</s>', and this server's tokenizer has"):
        publish(package, server.url, "another-end", admin_key="secret")
