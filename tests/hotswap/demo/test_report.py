from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from hotswap.demo.checks import all_checks
from hotswap.demo.report import write_report
from tests.hotswap.demo.answers import good


def test_the_report_shows_the_findings_and_both_files_agree(tmp_path: Path) -> None:
    findings = good()
    console = Console(file=io.StringIO(), width=118)
    write_report(tmp_path, findings, all_checks(findings), console)
    text = (tmp_path / "report.txt").read_text(encoding="utf-8")
    for expected in ("10% (1/10)", "100% (10/10)", "30% (3/10)", "90% (9/10)", "contacts@2", "✓", "5 equal"):
        assert expected in text
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["ok"] is True
    assert report["accuracy"]["contacts v2"] == {"task": "dates", "right": 10, "of": 10}
    assert report["latency_ms"]["contacts@1"]["mixed"]["ttft_p50"] == 1000.0
    assert report["requests"] == 5
