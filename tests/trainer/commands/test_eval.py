"""``hotswap eval`` as a user runs it: packages trained here, servers started by it or running already."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bases.errors import BaseModelError
from bases.finding import DEFAULT_BASE, resolve_base
from tests.factory import CHAT_TEMPLATE, make_tokenizer
from tests.server.live import Live, live_server
from tests.trainer.support import colour_rows, make_config, write_jsonl
from trainer.commands.eval import evaluate
from trainer.evaluation.metrics import METRICS
from trainer.evaluation.targets import find_target
from trainer.loop.session import RunResult
from trainer.run import train

TRAINED = ("max_steps=50", "learning_rate=1e-2", "validation=16", "dtype=float32", "eval_steps=50", "save_steps=50")


@pytest.fixture(scope="module")
def thinking(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with a template that puts an empty thought before an answer, as Qwen3's does."""
    base = shutil.copytree(tiny_base, tmp_path_factory.mktemp("thinking") / "base")
    tokenizer = make_tokenizer()
    thought = "{% if message.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ message.content", f"{thought}{{{{ message.content")
    tokenizer.save_pretrained(base)
    return base


@pytest.fixture(scope="module")
def run(thinking: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A LoRA that has learned the colours, though not all of them."""
    folder = tmp_path_factory.mktemp("eval")
    return train(make_config(folder, thinking, *TRAINED, "exact_match_rows=16"))


@pytest.fixture(scope="module")
def server(thinking: Path, run: RunResult, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with the LoRA under the name colours, and an admin key."""
    with live_server(
        thinking,
        tmp_path_factory.mktemp("data"),
        engine={"dtype": "float32"},
        adapters=(("colours", str(run.package)),),
        admin_key="secret",
    ) as live:
        yield live


def servers_of(path: Path) -> list[psutil.Process]:
    """The processes of ``hotswap serve`` that serve something below ``path``."""
    found = []
    for process in psutil.process_iter():
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if "serve" in line and any(str(path) in word for word in line):
            found.append(process)
    return found


def test_the_served_score_is_the_trained_one_and_the_server_is_stopped(run: RunResult, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hotswap", "eval", str(run.output), "--vs", "base"]
    files = ["--json", str(tmp_path / "report.json"), "--answers", str(tmp_path / "answers.jsonl")]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert servers_of(run.output) == []
    report = json.loads((tmp_path / "report.json").read_text())
    trained = run.metrics["exact_match"]
    assert 0 < trained < 1  # or equality would say little
    found = report["candidate"]["scores"]["exact_match"]
    assert found["value"] == trained
    assert 0 <= found["low"] < trained < found["high"] <= 1
    assert report["served"]["quantize"] == "none"
    assert report["served"]["dtype"] == "float32"
    assert report["rows"]["count"] == run.metrics["exact_match_rows"] == 16
    assert report["versus"]["scores"]["exact_match"]["value"] == 0
    assert report["comparison"]["metrics"]["exact_match"]["difference"] == trained
    assert report["comparison"]["metrics"]["exact_match"]["verdict"] == "better"
    assert "base: 16 answers were cut by max_tokens; raise --max-tokens" in report["warnings"]
    assert f"exact_match         {trained:.4f}" in done.stdout
    assert "0.0000 -> " in done.stdout
    assert "warning: " in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert sum(row["scores"]["exact_match"] for row in rows) == trained * 16
    assert all((row["answer"] == row["reference"]) == (row["scores"]["exact_match"] == 1) for row in rows)
    assert rows[0]["messages"][0]["role"] == "user"
    assert rows[0]["versus"]["scores"] == {"exact_match": 0.0}


@pytest.mark.slow
def test_quantization_and_template_of_training_are_those_of_serving(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("exact_match_rows=16", "quantize=nf4", "data.template=alpaca", "max_steps=80")
    result = train(make_config(tmp_path, tiny_base, *TRAINED, *settings))
    code, out, err = outcome(capsys, str(result.package), "--quiet")
    assert code == 0, err  # a server with another template refuses the package
    assert 0 < result.metrics["exact_match"] < 1
    assert f"exact_match         {result.metrics['exact_match']:.4f}" in out


def copies(count: int) -> list[dict[str, str]]:
    """Made-up words to be copied: some are easier than others."""
    generator = random.Random(0)
    parts = ["ba", "tri", "lo", "ken", "su", "vor", "mi", "quel", "ta", "zen"]
    words = ["".join(generator.choices(parts, k=1 + i % 4)) for i in range(count)]
    return [{"prompt": f"Write only this word: {word}", "response": word} for word in words]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_trained_and_served_scores_agree_on_a_real_base_in_nf4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        base = resolve_base(DEFAULT_BASE)
    except BaseModelError as error:
        pytest.skip(str(error))
    settings = ("quantize=nf4", "max_steps=4", "learning_rate=3e-4", "validation=24", "exact_match_rows=24")
    result = train(make_config(tmp_path, base, *settings, "eval_steps=4", "save_steps=4", rows=copies(96)))
    report = tmp_path / "report.json"
    code, out, err = outcome(capsys, str(result.output), "--json", str(report), "--quiet")
    assert code == 0, err
    served = json.loads(report.read_text())["candidate"]["scores"]["exact_match"]["value"]
    trained = result.metrics["exact_match"]
    with capsys.disabled():
        print(f"\nexact match on 24 rows, SmolLM2-135M in nf4: in training {trained:.4f}, served {served:.4f}\n{out}")
    assert 0 < trained < 1  # or agreement would say little
    assert abs(trained - served) <= 1 / 24  # one answer: where two tokens are equally likely, rounding decides


def is_asking(process: subprocess.Popen[bytes]) -> bool:
    """Whether it asks several questions at once, each over a connection of its own."""
    connections = psutil.Process(process.pid).net_connections()
    return [connection.status for connection in connections].count(psutil.CONN_ESTABLISHED) > 2


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_eval_stops_its_server(run: RunResult, tmp_path: Path, number: signal.Signals) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", colour_rows(5000))  # most of a minute, where nobody ends it
    command = [sys.executable, "-m", "hotswap", "eval", str(run.output), "--data", str(rows), "--json"]
    process = subprocess.Popen([*command, str(tmp_path / "r")], start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (servers_of(run.output) if number == signal.SIGTERM else is_asking(process)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        # CPython itself ends by SIGINT, which shells call 130 too, where the signal meets a library's exec() of a text.
        assert process.wait(60) in (130, -signal.SIGINT)
    finally:
        process.kill()
    assert servers_of(run.output) == []
    assert not (tmp_path / "r").exists()


def outcome(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = evaluate(list(argv))
    out, err = capsys.readouterr()
    return code, out, err


def test_a_name_on_a_running_server_is_asked_about_a_file(
    server: Live, run: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_jsonl(
        tmp_path / "more: rows.jsonl", [{"q": row["prompt"], "a": row["response"]} for row in colour_rows(9)]
    )
    argv = ["colours", "--server", server.url, "--data", str(file), "data.columns.prompt=q", "data.columns.response=a"]
    code, out, err = outcome(capsys, *argv, "--metrics", "exact_match,perplexity", "--rows", "6", "--vs", "base")
    assert code == 0, err
    assert out.startswith(f"6 test rows of more: rows.jsonl; server {server.url}\n")
    assert "perplexity" in out
    assert "lower is better" in out


def test_a_package_is_compared_with_what_is_live_and_leaves_no_trace(
    server: Live, run: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    argv = [str(run.package), "--server", server.url, "--admin-key", "secret", "--vs", "live:colours"]
    code, _, err = outcome(capsys, *argv, "--json", str(report), "--quiet")
    assert code == 0, err
    found = json.loads(report.read_text())
    assert found["candidate"]["scores"] == found["versus"]["scores"]  # it is the same adapter
    assert found["comparison"]["live"] == "colours"
    assert found["comparison"]["metrics"]["exact_match"]["verdict"] == "not told apart"
    assert server.context.registry.names() == ["colours"]


def test_retention_probes_compare_with_the_base(
    server: Live, run: RunResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gsm8k = tmp_path / "gsm8k"
    gsm8k.mkdir()
    write_jsonl(gsm8k / "test.jsonl", [{"question": "1 + 1?", "answer": "It is 2.\n#### 2"}])
    argv = ["colours", "--server", server.url, "--config", str(run.output / "config.yaml"), "--quiet", "--rows", "1"]
    report = tmp_path / "report.json"
    code, out, err = outcome(capsys, *argv, "--retention", "--probe", f"gsm8k={gsm8k}", "--json", str(report))
    assert code == 0, err
    found = json.loads(report.read_text())["retention"]
    assert [list(probe["metrics"]) for probe in found.values()] == [["includes"], ["perplexity"], ["gsm8k_accuracy"]]
    assert [next(iter(probe["metrics"].values()))["rows"] for probe in found.values()] == [40, 12, 1]
    assert found["text"]["metrics"]["perplexity"]["difference"] != 0
    assert "retention: " in out


@pytest.mark.slow
def test_a_fully_trained_base_is_served_by_itself_and_compared_with_what_it_was(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = train(make_config(tmp_path, tiny_base, "method=full", "max_steps=4", "learning_rate=1e-2"))
    assert trained.base is not None
    report = tmp_path / "report.json"
    argv = [
        str(trained.output),
        "--vs",
        "base",
        "--metrics",
        "perplexity",
        "--rows",
        "2",
        "--json",
        str(report),
        "--quiet",
    ]
    code, _, err = outcome(capsys, *argv)
    assert code == 0, err
    found = json.loads(report.read_text())["comparison"]["metrics"]["perplexity"]
    assert found["candidate"] != found["live"]


def test_metrics_that_nobody_named_are_left_out_where_they_say_nothing(
    server: Live, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "red", "response": '{"intent": "x", "slots": {}}'}] * 2
    argv = ["colours", "--server", server.url, "--data", str(write_jsonl(tmp_path / "rows.jsonl", rows)), "--quiet"]
    code, out, err = outcome(capsys, *argv)
    assert code == 0, err
    assert "hotswap: slot_f1 is left out: slot_f1 cannot be computed on any row: no reference has slots" in err
    assert "exact_match" in out
    code, _, err = outcome(capsys, *argv, "--metrics", "slot_f1")
    assert code == 1
    assert "no reference has slots" in err


def test_a_package_with_the_bases_configuration_beside_it_is_a_package(run: RunResult, tmp_path: Path) -> None:
    assert run.package is not None
    shutil.copytree(run.package, tmp_path / "adapter")
    (tmp_path / "adapter" / "config.json").write_text("{}")
    assert find_target(str(tmp_path), on_server=False).package == tmp_path / "adapter"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere"], "there is no package nowhere; give a directory, or --server URL"),
        (["RUN", "--vs", "live:colours"], "there is no package live:colours"),
        (["RUN", "--metrics", "slot_f2"], "unknown metric 'slot_f2'; choose from exact_match"),
        (["RUN", "--data", "gone.jsonl"], "gone.jsonl"),
        (["RUN", "--split", "test"], "there are no test rows"),
        (["RUN", "--recipe", "snaps", "--path", "."], "unknown recipe 'snaps'; choose from snips"),
        (["RUN", "--recipe", "snips"], "say where the files of snips are with --path FOLDER"),
        (["RUN", "--base", "nowhere"], "the server ended at its start: hotswap: there is no base model 'nowhere'"),
        (["RUN", "data.clumns.prompt=q"], "data.columns"),
        (["RUN", "--retention", "--probe", "mmlu=."], "unknown retention set 'mmlu'; choose from"),
        (["EMPTY"], "holds no adapter package (adapter_config.json) and no base (config.json)"),
        (["colours", "--server", "URL"], "say which rows to ask: --config RUN/config.yaml, --data FILE"),
        (["colors", "--server", "URL", "--config", "CONFIG"], "the server refused (404)"),
        (["RUN", "--server", "URL", "--admin-key", "wrong"], "the server refused the adapter (401)"),
        (["RUN", "--server", "http://127.0.0.1:9"], "cannot be reached"),
        (
            ["RUN", "--server", "URL", "--vs", "colours", "--admin-key", "secret", "--json", "/nowhere/r"],
            "cannot be written",
        ),
    ],
)
def test_mistakes_get_one_line_and_exit_code_1(
    server: Live, run: RunResult, capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    named = {"RUN": run.output, "EMPTY": run.output.parent, "URL": server.url, "CONFIG": run.output / "config.yaml"}
    code, _, err = outcome(capsys, *(str(named.get(word, word)) for word in argv), "--quiet")
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("hotswap: ")
    assert words in last
    assert server.context.registry.names() == ["colours"]


@pytest.mark.parametrize(
    "argv",
    [
        ["x", "--rows", "0"],
        ["x", "--data", "f", "--recipe", "snips"],
        ["x", "--path", "."],
        ["x", "--split", "train"],
        [],
    ],
)
def test_wrong_usage_gets_exit_code_2(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit) as done:
        evaluate(argv)
    assert done.value.code == 2
    assert "hotswap eval: error: " in capsys.readouterr().err


def test_metrics_are_listed_without_a_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        evaluate(["--list-metrics"])
    assert done.value.code == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(METRICS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hotswap.cli import main\n"
        "try:\n    main(['eval', '--help'])\nexcept SystemExit as done:\n    assert done.code == 0\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'rich', 'httpx', 'matplotlib', 'yaml'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: hotswap eval" in done.stdout


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["base", "--probe", "gsm8k=."], "--probe names a set for --retention"),
        (["base", "--retention", "--probe-rows", "-1"], "--probe-rows must be above 0"),
    ],
)
def test_wrong_usage_of_probes(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        evaluate(argv)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("key", ["schlüssel", "secret-key\r", " secret-key"])
def test_a_key_that_http_cannot_carry_is_one_line_without_it(
    run: RunResult, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = outcome(capsys, str(run.output), "--server", "http://127.0.0.1:9", "--admin-key", key)
    assert code == 1
    assert "must consist of printable ASCII characters" in err
    assert key.strip() not in err
    assert err.count("\n") == 1
