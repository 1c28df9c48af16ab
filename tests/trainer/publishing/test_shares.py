"""``hotswap publish --canary`` and ``--shadow`` into a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.server.live import Live
from tests.trainer.publishing.conftest import ADMIN, INFERENCE, MAX_TOKENS
from trainer.commands.publish import publish as publish_command
from trainer.errors import PublishError
from trainer.publishing.shares import Shares, parse_rules
from trainer.serving.client import AdminClient
from trainer.serving.upload import upload

NAME = "dates"


def published(server: Live, package: Path, *options: str) -> int:
    given = ["--server", server.url, "--as", NAME, "--admin-key", ADMIN, "--quiet"]
    return publish_command([str(package), *given, *options])


def traffic(admin: AdminClient) -> dict[str, Any]:
    found: dict[str, Any] = admin.adapter(NAME)["traffic"]
    return found


def test_a_canary_and_a_shadow(
    server: Live, admin: AdminClient, packages: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert published(server, packages["right"], "--canary", "5%") == 1
    assert "serves no version yet" in capsys.readouterr().err
    assert admin.versions(NAME) == [], "nothing was sent"
    assert published(server, packages["right"]) == 0
    options = ("--canary", "5%", "--shadow", "0.1", "--rule", "max_error_rate=0.02", "--rule", "min_requests=20")
    assert published(server, packages["wrong"], *options) == 0
    assert f"{NAME}@2 gets 5% of the requests to {NAME} and gets copies of 10%" in capsys.readouterr().out
    found = traffic(admin)
    assert [(one["version"], one["weight"]) for one in found["canaries"]] == [(2, 0.05)]
    rules = found["canaries"][0]["rules"]
    assert (rules["max_error_rate"], rules["min_requests"]) == (0.02, 20)
    assert (found["shadow"]["version"], found["shadow"]["weight"]) == (2, 0.1)
    assert published(server, packages["wrong"], "--canary", "0.25") == 0, "said again, it grows"
    assert traffic(admin)["canaries"][0]["weight"] == 0.25
    assert published(server, packages["right"], "--canary", "5%") == 0
    assert f"published {NAME} version 1" in capsys.readouterr().out, "it is live already"
    assert published(server, packages["other"], "--shadow", "100%") == 0
    assert traffic(admin)["shadow"]["version"] == 3


@pytest.mark.parametrize("share", ["5", "1", "0", "0%", "-5%", "101%", "1.5", "nan", "inf%", "five", "5%%", ""])
@pytest.mark.parametrize("option", ["--canary", "--shadow"])
def test_what_is_no_share(
    option: str, share: str, packages: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        publish_command([str(packages["right"]), "--server", "http://127.0.0.1:9", "--as", NAME, f"{option}={share}"])
    assert ended.value.code == 2
    assert "like 5% or 0.05" in capsys.readouterr().err


def test_rules() -> None:
    assert parse_rules(["max_error_rate=0.02", "min_requests = 50", "f1>=live-0.01", "perplexity<=9"]) == {
        "max_error_rate": 0.02,
        "min_requests": 50,
        "gates": ["f1>=live-0.01", "perplexity<=9"],
    }
    assert parse_rules([]) == {}
    for wrong in ("max_error_rate", "max_error_rate=", "max_error_rate=low", "=1", ""):
        with pytest.raises(PublishError, match="is no rule"):
            parse_rules([wrong])
    assert Shares(0.05, 0.1).words("a") == "gets 5% of the requests to a and gets copies of 10% of the requests to a"


def test_a_rule_that_the_server_does_not_know(
    server: Live, admin: AdminClient, packages: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    published(server, packages["right"])
    assert published(server, packages["wrong"], "--canary", "5%", "--rule", "max_eror_rate=0.1") == 1
    said = capsys.readouterr().err
    assert "waits as a candidate" in said
    assert "max_eror_rate" in said
    assert [version.state for version in admin.versions(NAME)] == ["live", "candidate"]
    with pytest.raises(SystemExit):
        published(server, packages["wrong"], "--rule", "max_error_rate=0.1")
    assert "--rule is for a --canary" in capsys.readouterr().err


def test_what_stands_its_gates_becomes_a_canary_with_scores(
    server: Live, admin: AdminClient, packages: dict[str, Path], rows_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(admin, packages["wrong"], NAME)
    gate = ("--gate", "exact_match>=live+0.5", "--gate-data", str(rows_file), "--api-key", INFERENCE)
    options = (*gate, "--max-tokens", str(MAX_TOKENS), "--canary", "10%", "--rule", "exact_match>=live")
    assert published(server, packages["right"], *options) == 0
    assert "gets 10% of the requests" in capsys.readouterr().out
    found = traffic(admin)
    assert found["scores"]["2"]["exact_match"] == 1.0
    assert found["scores"]["1"]["exact_match"] < 0.5
    (canary,) = found["canaries"]
    assert (canary["version"], canary["weight"]) == (2, 0.1)
    assert (canary["verdicts"][0]["value"], canary["verdicts"][0]["breached"]) == (1.0, False)
