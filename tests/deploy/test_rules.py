"""What of the rules can be checked without a server."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import programs

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
TESTS = sorted(Path(__file__).parent.glob("alerts_*test.yaml"))


@pytest.fixture(scope="module")
def promtool() -> Path:
    try:
        return programs.prometheus() / "promtool"
    except programs.MissingProgramError as error:
        pytest.skip(str(error))


def alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"] if "alert" in rule}


def test_rules_fire_when_they_should(promtool: Path) -> None:
    done = subprocess.run([promtool, "test", "rules", *TESTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_configuration(promtool: Path) -> None:
    for command in (["check", "rules", "--lint=all"], ["check", "config", "--syntax-only"]):
        file = FOLDER / ("alerts.yaml" if "rules" in command else "prometheus.yml")
        done = subprocess.run([promtool, *command, file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_who_is_told_of_alerts() -> None:
    """Alertmanager's own tool takes the file, and leads alerts to those they are for."""
    try:
        program = programs.alertmanager() / "amtool"
    except programs.MissingProgramError as error:
        pytest.skip(str(error))

    def run(*arguments: str) -> None:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    file = str(FOLDER / "alertmanager.yml")
    run("check-config", file)
    for severity, receiver in (("critical", "on-call"), ("warning", "operators")):
        run(
            "config",
            "routes",
            "test",
            f"--config.file={file}",
            f"--verify.receivers={receiver}",
            f"severity={severity}",
        )
    inhibitions = yaml.safe_load(Path(file).read_text())["inhibit_rules"]
    named = {name for rule in inhibitions for name in re.findall(r'="(Hotswap\w+)"', str(rule))}
    assert named <= set(alerts()), "rules that are none"


def test_each_rule_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    tests = [test for path in TESTS for test in yaml.safe_load(path.read_text())["tests"]]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(alerts())
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == set(alerts())


def test_each_rule_has_its_place_in_the_runbook() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE)
    assert headings == list(alerts())
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")
