"""``hotswap eval``. Exit codes: 0 done, 1 one of our errors, 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from trainer.commands.common import end_on_sigterm, guarded

_EXAMPLES = """\
examples:
  hotswap eval runs/dates                                  # the rows that the run held back
  hotswap eval runs/dates --vs base --retention            # what it gained, and what it lost
  hotswap eval runs/new --server URL --vs live:dates       # against what a server answers now
  hotswap eval dates --server URL --data more.jsonl --metrics exact_match,perplexity
  hotswap eval runs/sql --recipe geography --path data/geography --split test

Answers come over HTTP from the serving engine, greedily. Without --server one is started on a free port, with the base
and quantization that the package was trained on, and stopped at the end.
"""


def evaluate(argv: list[str]) -> int:
    """Run ``hotswap eval``."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)
    for option in ("rows", "max_tokens", "concurrency", "timeout", "probe_rows"):
        value = getattr(args, option)
        if value is not None and value <= 0:
            parser.error(f"--{option.replace('_', '-')} must be above 0")
    if args.recipe and args.data:
        parser.error("give --data or --recipe, not both")
    if args.path and not args.recipe:
        parser.error("--path is the folder of a --recipe")
    if args.probe and not args.retention:
        parser.error("--probe names a set for --retention")
    end_on_sigterm()  # as Ctrl-C does: our server is stopped too
    return guarded(_evaluate, args)


class _ListMetrics(argparse.Action):
    """``--list-metrics``: needs no package."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from trainer.evaluation.metrics import METRICS

        print("\n".join(f"{metric.name:<16} {metric.summary}" for metric in METRICS.values()))
        parser.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hotswap eval",
        description="Score an adapter by the answers that the serving engine gives, with confidence intervals.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="PACKAGE|NAME", help="a package, a run's output, a name on the --server, or base"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values over the configuration")
    rows = parser.add_argument_group("rows")
    rows.add_argument("--config", type=Path, help="config.yaml of the run whose rows to ask (default: the package's)")
    rows.add_argument("--data", type=Path, metavar="FILE", help="ask all rows of this file")
    rows.add_argument("--recipe", metavar="NAME", help="ask rows of this published data set")
    rows.add_argument("--path", type=Path, metavar="FOLDER", help="where the files of the --recipe are")
    rows.add_argument("--split", choices=("validation", "test"), help="default: validation; of a recipe test")
    rows.add_argument("--rows", type=int, metavar="N", help="only the first N rows")
    scores = parser.add_argument_group("scores")
    scores.add_argument("--metrics", metavar="A,B", help="default: the recipe's, or what fits the references")
    scores.add_argument("--list-metrics", action=_ListMetrics, nargs=0, help="show all metrics and exit")
    scores.add_argument("--vs", metavar="live:NAME|base|PACKAGE", help="compare with this on the same rows")
    scores.add_argument("--retention", action="store_true", help="also ask what the base could do before training")
    scores.add_argument(
        "--probe", action="append", default=[], metavar="gsm8k=FOLDER", help="published set for --retention; repeatable"
    )
    scores.add_argument("--probe-rows", type=int, default=100, metavar="N", help="of each set (default: %(default)s)")
    scores.add_argument("--json", type=Path, metavar="FILE", help="write the report")
    scores.add_argument("--answers", type=Path, metavar="FILE.jsonl", help="write every answer")
    server = parser.add_argument_group("server")
    server.add_argument("--server", metavar="URL", help="ask this server; packages are uploaded to it for a while")
    server.add_argument("--base", metavar="ID|DIR", help="base of the own server (default: what it was trained on)")
    server.add_argument("--quantize", metavar="HOW", help="of the own server (default: as in training)")
    server.add_argument("--trust-remote-code", action="store_true", help="the own server runs code of the base")
    server.add_argument("--api-key", default=os.environ.get("HOTSWAP_API_KEY"), help="default: $HOTSWAP_API_KEY")
    server.add_argument("--admin-key", default=os.environ.get("HOTSWAP_ADMIN_KEY"), help="default: $HOTSWAP_ADMIN_KEY")
    server.add_argument("--max-tokens", type=int, metavar="N", help="of an answer (default: by the longest reference)")
    server.add_argument("--concurrency", type=int, default=8, metavar="N", help="default: %(default)s")
    server.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS", help="per request (%(default)s)")
    server.add_argument("--quiet", action="store_true", help="show no progress")
    return parser


def _evaluate(args: argparse.Namespace) -> int:
    from trainer.errors import EvaluationError
    from trainer.evaluation.metrics import find_metrics
    from trainer.evaluation.report import lines, warnings, write_answers, write_report
    from trainer.evaluation.rows import RowSource, load_rows
    from trainer.evaluation.scoring import check_scorable, scorable
    from trainer.evaluation.suite import EvalOptions, run_suite
    from trainer.evaluation.targets import find_target
    from trainer.files import check_writable
    from trainer.progress import show_bar, silent

    candidate = find_target(args.model, on_server=bool(args.server))
    versus = find_target(args.vs, on_server=bool(args.server)) if args.vs else None
    asked = args.metrics.split(",") if args.metrics else None
    named = find_metrics(asked) if asked else []  # before anything is loaded
    for file in filter(None, (args.json, args.answers)):
        check_writable(file, EvaluationError)
    config = args.config or candidate.config
    source = RowSource(config, args.data, args.recipe, args.path, args.split, args.rows, args.overrides)
    rows = load_rows(source)
    for metric in named:
        check_scorable(metric, rows.questions)
    metrics = asked or scorable(rows.metrics, rows.questions, lambda text: print(f"hotswap: {text}", file=sys.stderr))
    options = EvalOptions(
        server=args.server,
        api_key=args.api_key,
        admin_key=args.admin_key,
        base=args.base,
        quantize=args.quantize,
        trust_remote_code=args.trust_remote_code,
        max_tokens=args.max_tokens,
        concurrency=args.concurrency,
        timeout=args.timeout,
        retention=args.retention,
        probe_folders=_folders(args.probe),
        probe_rows=args.probe_rows,
    )
    report = run_suite(candidate, versus, rows, metrics, options, bar=silent if args.quiet else show_bar)
    print("\n".join(lines(report)))
    for warning in warnings(report):
        print(f"warning: {warning}", file=sys.stderr)
    if args.json:
        write_report(report, args.json)
    if args.answers:
        write_answers(report, args.answers)
    return 0


def _folders(items: list[str]) -> dict[str, Path]:
    from trainer.errors import EvaluationError

    out = {}
    for item in items:
        name, equals, folder = item.partition("=")
        if not equals:
            raise EvaluationError(f"--probe {item!r} is not NAME=FOLDER")
        out[name] = Path(folder)
    return out
