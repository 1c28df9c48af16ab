"""``hotswap adapters`` against a real server: what it says, its JSON, its exit codes, and what is served then."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from adapters.package.archive import pack
from adapters.package.reading import read_package
from tests.factory import make_adapter
from tests.once import Once
from tests.server.live import Live, live_server
from trainer.commands.adapters import main
from trainer.commands.server_options import ADMIN_KEY, URL
from trainer.serving.client import AdminClient

KEY = "root"


@dataclass
class Shell:
    """Runs the command as in a shell, whose environment knows the server and the key."""

    server: Live
    capture: pytest.CaptureFixture[str]

    def __call__(self, *argv: str, code: int = 0) -> str:
        """What it prints; its errors where ``code`` says that it fails."""
        try:
            ended = main(list(argv))
        except SystemExit as exit_:
            ended = int(str(exit_.code))
        out, err = self.capture.readouterr()
        assert ended == code, (argv, out, err)
        if code == 1:
            assert err.startswith("hotswap: ")
            assert err.count("\n") == 1, "one plain line"
        return out if code == 0 else err

    def json(self, *argv: str) -> Any:
        """Its answer for programs."""
        return json.loads(self(*argv, "--json"))


@pytest.fixture(scope="module")
def packages(tiny_base: Path, once: Once) -> dict[str, Path]:
    """Two packages of different content."""
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")

    def make(name: str, seed: int) -> Path:
        return once.make(f"operators-{name}", lambda path: make_adapter(tiny_base, path, config, seed=seed, std=0.5))

    return {name: make(name, seed) for seed, name in enumerate(("one", "two"))}


@pytest.fixture(scope="module")
def server(tiny_base: Path, packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server for all tests, each of which uses names of its own."""
    root = [str(packages["one"].parent)]
    with live_server(tiny_base, tmp_path_factory.mktemp("operators"), admin_key=KEY, adapter_root=root) as live:
        yield live


@pytest.fixture
def shell(server: Live, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv(URL, server.url)
    monkeypatch.setenv(ADMIN_KEY, KEY)
    return Shell(server, capsys)


def rows(table: str) -> list[list[str]]:
    """The words of each line of a table."""
    return [line.split() for line in table.splitlines()]


def test_from_upload_to_removal(shell: Shell, packages: dict[str, Path], tmp_path: Path) -> None:
    digests = {name: read_package(package).digest for name, package in packages.items()}
    assert shell("upload", "a", str(packages["one"])) == f"a serves version 1  digest {digests['one']}\n"
    pack(packages["two"], tmp_path / "two.tar")
    exists = shell("upload", "a", str(tmp_path / "two.tar"), code=1)
    assert "the adapter 'a' exists (version 1)" in exists
    assert exists.endswith("; here: --replace, --candidate or --canary\n")
    waits = shell("upload", "a", str(tmp_path / "two.tar"), "--candidate")
    assert waits == f"a@2 waits as a candidate  digest {digests['two']}\n"

    listed = rows(shell("list"))
    assert listed[0][:4] == ["NAME", "LIVE", "KIND", "SIZE"]
    (row,) = [row for row in listed if row[0] == "a"]
    assert row[:3] == ["a", "1", "lora"]
    assert "candidate 2" in " ".join(row)
    shown = shell("show", "a")
    assert "serves    version 1" in shown
    assert [row[:2] for row in rows(shown)[-2:]] == [["1", "live"], ["2", "candidate"]]
    assert rows(shell("show", "a@2"))[1][:2] == ["2", "candidate"]
    assert "a has no version 3 there" in shell("show", "a@3", code=1)

    assert shell("activate", "a", "2") == f"a serves version 2 now, before it 1  digest {digests['two']}\n"
    assert shell("activate", "a", "2") == "a serves version 2 already\n"
    assert shell("rollback", "a").startswith("rolled a back from version 2 to 1  digest ")
    assert shell("rm", "a@2") == "a@2 was removed; requests that it runs finish first\n"
    assert shell("rm", "a", "--force") == "a was removed; requests that it runs were ended\n"
    assert "'a' was removed. Upload it again" in shell("show", "a", code=1)
    assert "'a' was removed" in shell("rm", "a", code=1)
    assert "a serves version 3  " in shell("upload", "a", str(packages["one"])), "its numbers go on"


def test_a_source_is_what_the_server_gets_itself(shell: Shell, packages: dict[str, Path]) -> None:
    one, two = (f"file://{package}" for package in packages.values())
    digest = read_package(packages["one"]).digest
    assert shell("upload", "f", one, "--digest", digest) == f"f serves version 1  digest {digest}\n"
    assert "the adapter 'f' exists (version 1)" in shell("upload", "f", two, code=1)
    assert "(409)" in shell("upload", "f", two, "--replace", "--expected-live", "2", code=1)
    assert "(412)" in shell("upload", "f", two, "--replace", "--if-match", "stale", code=1)
    assert shell("upload", "f", two, "--candidate").startswith("f@2 waits as a candidate")
    assert "has the SHA-256" in shell("upload", "f", two, "--replace", "--digest", "0" * 64, code=1)
    assert "(400)" in shell("upload", "f", "s3://bucket/a.zip", "--digest", digest, code=1), (
        "which is not allowed there"
    )


def test_programs_get_the_server_s_answer(shell: Shell, packages: dict[str, Path]) -> None:
    made = shell.json("upload", "j", str(packages["one"]))
    assert (made["object"], made["id"], made["state"]) == ("adapter.version", "j@1", "live")
    with AdminClient(shell.server.url, KEY) as client:
        assert shell.json("show", "j") == client.adapter("j")
        assert shell.json("list") == client.adapters()
    shell("upload", "j", str(packages["two"]), "--candidate")
    changed = shell.json("activate", "j", "2", "--expected-live", "1")
    assert (changed["replaced"], changed["changed"]) == (1, True)
    assert shell.json("rm", "j")["deleted"] is True
    assert main(["show", "j", "--json"]) == 1
    out, err = shell.capture.readouterr()
    assert json.loads(out)["error"]["code"] == "model_not_found"
    assert err.startswith("hotswap: the server refused to tell of the adapter (404): ")


def test_only_what_was_looked_at_is_changed(shell: Shell, packages: dict[str, Path]) -> None:
    one, two = (str(package) for package in packages.values())
    shell("upload", "g", one, "--expected-live", "0", "--if-match", "*", code=1)
    shell("upload", "g", one, "--expected-live", "0")
    etag = shell.json("show", "g")["etag"]
    assert f"etag      {etag}" in shell("show", "g")
    shell("upload", "g", two, "--replace", "--if-match", etag.strip('"'))
    refused = shell("rollback", "g", "--if-match", etag, code=1)
    assert "(412): 'g' was changed meanwhile: it serves version 2 now" in refused
    assert "(409): 'g' serves version 2, not 1" in shell("activate", "g", "1", "--expected-live", "1", code=1)
    assert "(412)" in shell("rm", "g", "--if-match", etag, code=1)
    assert "(409)" in shell("upload", "g", one, "--replace", "--expected-live", "0", code=1)
    assert [row[1] for row in rows(shell("show", "g"))[-2:]] == ["stored", "live"]


def test_settings(shell: Shell, packages: dict[str, Path]) -> None:
    shell("upload", "s", str(packages["one"]))
    assert "settings  the server's defaults" in shell("show", "s")
    assert shell("pin", "s") == "s is pinned: it stays in memory\n"
    words = "weight 2, priority 1, retention 5, idle TTL 600, requests a minute 60, concurrent 8, queued 32"
    flags = "--weight 2 --priority 1 --retention 5 --idle-ttl 600 --rpm 60 --concurrency 8 --queue 32"
    assert shell("set", "s", *flags.split()) == f"s: pinned, {words}\n"
    shown = shell.json("set", "s", "--weight", "default", "--rpm", "default", "--tpm", "10000")
    limits = {"requests_per_minute": None, "tokens_per_minute": 10000, "max_concurrency": 8, "max_queue": 32}
    assert (shown["weight"], shown["pinned"], shown["limits"]) == (1.0, True, limits)
    assert "pinned" in next(line for line in shell("list").splitlines() if line.startswith("s "))
    shell("unpin", "s")
    assert shell.json("show", "s")["pinned"] is False
    assert "weight: must be" in shell("set", "s", "--weight", "0", code=1)
    assert "(404)" in shell("set", "nobody", "--weight", "2", code=1)


def test_a_canary_from_upload_to_promotion(shell: Shell, packages: dict[str, Path]) -> None:
    one, two = (str(package) for package in packages.values())
    shell("upload", "c", one)
    assert shell("upload", "c", two, "--canary", "5%").startswith("c@2 gets 5% of the requests to c  digest ")
    shown = shell("show", "c")
    assert "traffic   canary 2 at 5%" in shown
    assert [row[:2] for row in rows(shown)[-2:]] == [["1", "live"], ["2", "canary"]]
    assert "canary 2 at 5%" in shell("list")
    assert shell("canary", "c", "2", "25%") == "c gives version 2 25% of the requests\n"
    assert shell.json("canary", "c", "2", "--weight", "0.5")["traffic"]["canaries"][0]["weight"] == 0.5
    assert "(409)" in shell("canary", "c", "1", "5%", code=1), "which is live"
    assert shell("canary", "c", "2", "10%", "--shadow") == "c gives version 2 10% of copies of the requests\n"
    assert "shadow 2 at 10%" in shell("list")
    assert shell("canary", "c", "--off", "--shadow") == "c has no shadow any more\n"
    assert "(412)" in shell("abort", "c", "--if-match", "stale", code=1)
    assert shell("abort", "c") == "c gives all its requests to the live version again\n"
    assert "traffic" not in shell("show", "c").split("settings")[0]
    assert "has no canary" in shell("promote", "c", code=1)
    plan = "--step 50% --step 100% --step-seconds 600 --rule max_error_rate=0.02 --rule min_requests=20 --gate f1>=0.5"
    (canary,) = shell.json("canary", "c", "2", "5%", *plan.split())["traffic"]["canaries"]
    assert (canary["steps"], canary["step_seconds"]) == ([0.5, 1.0], 600)
    assert (canary["rules"]["max_error_rate"], canary["rules"]["gates"]) == (0.02, ["f1>=0.5"])
    assert "max_erorr_rate" in shell("canary", "c", "2", "5%", "--rule", "max_erorr_rate=0.02", code=1)
    assert shell.json("abort", "c", "2", "--reason", "a trial")["traffic"]["ended"]["reason"] == "a trial"
    shell("canary", "c", "2", "5%")
    assert "(409)" in shell("promote", "c", "--expected-live", "2", "--json", code=1)
    assert shell("promote", "c") == "the canary of c is live now: version 2\n"
    assert shell("upload", "c", two, "--canary", "5%").endswith(": it needs no canary\n")
    refused = shell("upload", "d", two, "--canary", "5%", code=1)
    assert "d@1 was uploaded and waits as a candidate, but the server refused" in refused


def test_history_says_who_did_what(shell: Shell, packages: dict[str, Path]) -> None:
    shell("upload", "h", str(packages["one"]))
    shell("set", "h", "--weight", "2")
    shell("activate", "h", "7", code=1)
    shell("rm", "h")
    events = shell.json("history", "h")["data"]
    told = [(event["action"], event["version"], event["outcome"]) for event in events]
    assert told == [("remove", None, "done"), ("activate", 7, "refused"), ("set", None, "done"), ("upload", 1, "done")]
    table = rows(shell("history", "h", "--limit", "2"))
    assert [line[3:6] for line in table[1:]] == [["remove", "-", "done"], ["activate", "7", "refused"]]
    assert {line[2] for line in table[1:]} == {events[0]["actor"]}
    assert shell("history", "never") == "nothing is recorded of it\n"


class Terminal(io.StringIO):
    """What a person types."""

    def isatty(self) -> bool:
        return True


def test_a_removal_is_asked_for_at_a_terminal(
    shell: Shell, packages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shell("upload", "r", str(packages["one"]))
    for typed in ("n\n", "\n", ""):
        monkeypatch.setattr("sys.stdin", Terminal(typed))
        assert main(["rm", "r"]) == 1
        question = shell.capture.readouterr().err
        assert f"remove r with version 1 from {shell.server.url}? nothing of it runs. [y/N] " in question
        assert question.endswith("hotswap: nothing was removed\n")
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert main(["rm", "r"]) == 0
    shell.capture.readouterr()
    shell("upload", "r", str(packages["one"]))
    monkeypatch.setattr("sys.stdin", Terminal(""))
    assert shell("rm", "r", "--yes").startswith("r was removed")


def test_the_key_comes_from_a_file_too(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ADMIN_KEY)
    assert "(401): " in shell("list", code=1)
    (tmp_path / "key").write_text(f"\n{KEY}\n")
    shell("--key-file", str(tmp_path / "key"), "list")
    shell("list", "--admin-key", KEY)
    assert "not both" in shell("list", "--admin-key", KEY, "--key-file", str(tmp_path / "key"), code=1)
    (tmp_path / "empty").write_text("\n")
    assert "holds no key" in shell("list", "--key-file", str(tmp_path / "empty"), code=1)
    assert "cannot be read: No such file" in shell("list", "--key-file", str(tmp_path / "none"), code=1)
    assert "cannot be reached" in shell("list", "--url", "http://127.0.0.1:9", "--admin-key", KEY, code=1)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "frob",
        "show",
        "activate a x",
        "activate a 0",
        "activate a 1 --expected-live x",
        "rm a@",
        "canary a",
        "canary a 3",
        "canary a 3 5",
        "canary a 3 5% --off",
        "canary a 3 5% --shadow --step 10%",
        "canary a 3 5% --rule x",
        "upload a x --canary 0",
        "upload a x --canary 5% --candidate",
        "upload a x --digest 00",
        "set a",
        "set a --rpm many",
        "set a --priority 1.5",
        "list --timeout 0",
    ],
)
def test_wrong_usage_is_exit_2_and_asks_no_server(wrong: str, shell: Shell) -> None:
    said = shell(*wrong.split(), "--url", "http://127.0.0.1:9", code=2)
    assert "usage: hotswap adapters" in said


def test_what_is_no_package_is_one_line(shell: Shell, tmp_path: Path) -> None:
    assert "neither a package" in shell("upload", "n", str(tmp_path / "nowhere"), code=1)
    assert "from the hub is hf:org/name@v1" in shell("upload", "n", "org/name@v1", code=1)
    assert "cannot name an adapter" in shell("upload", "a b", str(tmp_path), code=1)
