"""``hotswap publish``.

Exit codes: 0 live, or a canary as was asked, 1 one of our errors, 2 wrong usage, 3 a gate refused, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.commands.adapters_verbs import share_argument
from trainer.commands.common import end_on_sigterm, guarded
from trainer.commands.server_options import add_server_options, admin_client, admin_key

if TYPE_CHECKING:
    from trainer.evaluation.rows import EvaluationRows
    from trainer.publishing.shares import Shares
    from trainer.serving.client import AdminClient, ServedVersion


EXIT_REFUSED = 3
_EXAMPLES = """\
examples:
  hotswap publish runs/dates --server URL --as dates                       # live at once; --replace for a known name
  hotswap publish runs/dates --server URL --as dates --gate "exact_match>=live"
  hotswap publish runs/snips --server URL --as snips --gate "slot_f1>=live-0.01" --gate "exact_match>=0.8"
  hotswap publish runs/dates --server URL --as dates --gate "perplexity<=live" --confident --report gate.json
  hotswap publish runs/dates --server URL --as dates --canary 5% --shadow 10% --rule max_error_rate=0.02

With --gate the package is uploaded as a candidate, which only answers to NAME@VERSION. The server answers the held-out
rows as the candidate and as the live version (the base, while there is none), and the candidate goes live only if every
gate holds; otherwise it is removed and the exit code is 3. Requests to NAME notice nothing.
"""


def publish(argv: list[str]) -> int:
    """Run ``hotswap publish``."""
    parser = _parser()
    args = parser.parse_args(argv)
    for option in ("rows", "max_tokens", "concurrency"):
        value = getattr(args, option)
        if value is not None and value <= 0:
            parser.error(f"--{option.replace('_', '-')} must be above 0")
    if not args.gate:
        for option in ("gate_data", "gate_config", "split", "rows", "report", "keep_candidate", "confident"):
            if getattr(args, option):
                parser.error(f"--{option.replace('_', '-')} is for a --gate")
    if args.rule and args.canary is None:
        parser.error("--rule is for a --canary")
    if not args.gate:
        return guarded(_publish, args)
    end_on_sigterm()  # as Ctrl-C does: the candidate is removed
    return guarded(_publish_gated, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hotswap publish",
        description="Check an adapter package and upload it into a running server.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "directory",
        type=Path,
        help="the output of a training run, its adapter, or peft's files; also as .zip, .tar, .tar.gz",
    )
    parser.add_argument("--as", required=True, dest="name", metavar="NAME", help="the name that requests will use")
    parser.add_argument("--replace", action="store_true", help="replace the adapter of this name; no request fails")
    parser.add_argument(
        "--canary", type=share_argument, metavar="SHARE", help="only for a share of the requests to the name, like 5%%"
    )
    parser.add_argument(
        "--shadow", type=share_argument, metavar="SHARE", help="copies of a share, whose answers are compared alone"
    )
    parser.add_argument(
        "--rule", action="append", default=[], metavar="RULE",
        help='what ends the canary by itself: max_error_rate=0.02, max_ttft_p95_ratio=1.5, "f1>=live-0.01", ...',
    )  # fmt: skip
    parser.add_argument("--allow-noop", action="store_true", help="publish it even if it answers as the base does")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_server_options(parser)
    gate = parser.add_argument_group("gate")
    gate.add_argument(
        "--gate",
        action="append",
        default=[],
        metavar="EXPR",
        help="METRIC>=live, METRIC>=live-0.01 or METRIC>=0.8",
    )
    gate.add_argument("--confident", action="store_true", help="the whole 95 %% interval must be on the right side")
    gate.add_argument("--gate-data", type=Path, metavar="FILE", help="ask all rows of this file")
    gate.add_argument("--gate-config", type=Path, metavar="FILE", help="config.yaml of the rows (default: the run's)")
    gate.add_argument("--split", choices=("validation", "test"), help="default: validation")
    gate.add_argument("--rows", type=int, metavar="N", help="only the first N rows")
    gate.add_argument("--report", type=Path, metavar="FILE.json", help="write what was found and done")
    gate.add_argument("--keep-candidate", action="store_true", help="leave it on the server when a gate refuses it")
    gate.add_argument("--api-key", default=os.environ.get("HOTSWAP_API_KEY"), help="default: $HOTSWAP_API_KEY")
    gate.add_argument("--max-tokens", type=int, metavar="N", help="of an answer (default: by the longest reference)")
    gate.add_argument("--concurrency", type=int, default=8, metavar="N", help="default: %(default)s")
    return parser


def _publish(args: argparse.Namespace) -> int:
    from trainer.progress import show_upload
    from trainer.serving.upload import checked_package, upload

    shares = _shares(args)
    with checked_package(args.directory, args.name) as package, admin_client(args) as client:
        shares.check(client, args.name)
        published = upload(
            client,
            package,
            args.name,
            replace=args.replace and not shares.asked,
            activate=not shares.asked,
            allow_noop=args.allow_noop,
            progress=None if args.quiet else show_upload,
        )
        if shares.asked and published.state != "live":
            print(_shared(client, published, shares))
        else:
            print(f"published {published.name} version {published.version}  digest {published.digest}")
    for warning in published.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _shares(args: argparse.Namespace) -> Shares:
    from trainer.publishing.shares import Shares, parse_rules

    return Shares(args.canary, args.shadow, parse_rules(args.rule))


def _shared(client: AdminClient, published: ServedVersion, shares: Shares) -> str:
    """Let a candidate that was uploaded have its shares. Raises PublishError, which says where it is."""
    from trainer.errors import PublishError

    try:
        shares.begin(client, published)
    except PublishError as error:
        raise PublishError(f"{published} was uploaded and waits as a candidate, but {error}") from error
    return f"{published} {shares.words(published.name)}  digest {published.digest}"


def _publish_gated(args: argparse.Namespace) -> int:
    from trainer.serving.upload import found_package

    with found_package(args.directory) as package:
        return _publish_through_gates(args, package)


def _publish_through_gates(args: argparse.Namespace, package: Path) -> int:
    from trainer.errors import PublishError
    from trainer.files import check_writable
    from trainer.progress import show_bar, show_upload, silent
    from trainer.publishing.gate_report import write_report
    from trainer.publishing.gated_publish import Feedback, GateOptions, publish_gated
    from trainer.publishing.gates import parse_gates

    gates = parse_gates(args.gate)
    if args.report:
        check_writable(args.report, PublishError)
    rows = _rows(args, package)
    options = GateOptions(
        gates=gates,
        metrics=rows.metrics,
        confident=args.confident,
        keep_candidate=args.keep_candidate,
        shares=_shares(args),
        allow_noop=args.allow_noop,
        api_key=args.api_key or admin_key(args),
        max_tokens=args.max_tokens,
        concurrency=args.concurrency,
        timeout=args.timeout,
    )
    bar, upload = (silent, None) if args.quiet else (show_bar, show_upload)
    feedback = Feedback(lambda text: print(f"hotswap: {text}", file=sys.stderr), bar, upload)
    with admin_client(args) as client:
        report = publish_gated(package, client, args.name, rows, options=options, feedback=feedback)
    for warning in report.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    print("\n".join(report.lines()))
    if args.report:
        write_report(report, args.report)
    return 0 if report.is_served else EXIT_REFUSED


def _rows(args: argparse.Namespace, package: Path) -> EvaluationRows:
    from trainer.evaluation.rows import RowSource, config_beside, load_rows

    config = args.gate_config or config_beside(package)
    return load_rows(RowSource(config=config, data=args.gate_data, split=args.split, rows=args.rows))
