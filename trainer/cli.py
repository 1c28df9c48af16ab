"""``hotswap train`` and ``hotswap publish``. Nothing heavy is imported before the arguments are known to be sound.

Exit codes: 0 done, 1 one of our errors (one plain line), 2 wrong usage, 128 + signal for an interrupted training.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

_TRAIN_EXAMPLES = """\
a key is dotted (training.learning_rate=1e-4) or its last part alone (learning_rate=1e-4); HOTSWAP_TRAIN_<KEY> in the
environment does the same, with __ for the dot. The smallest file:

  output: runs/dates
  method: lora                      # or prefix, prompt, or {type: lora, r: 16, ...}
  data: {path: dates.jsonl}         # rows {"prompt": ..., "response": ...}
"""


def train(argv: list[str]) -> int:
    """Run ``hotswap train``."""
    parser = argparse.ArgumentParser(
        prog="hotswap train",
        description="Train an adapter as a YAML file says; the package is written to OUTPUT/adapter.",
        epilog=_TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that override the file")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output directory")
    start.add_argument("--overwrite", action="store_true", help="start anew although the output holds a run")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return _guarded(_train, parser.parse_intermixed_args(argv))


def publish(argv: list[str]) -> int:
    """Run ``hotswap publish``."""
    parser = argparse.ArgumentParser(
        prog="hotswap publish", description="Check an adapter package and upload it into a running server."
    )
    parser.add_argument("directory", type=Path, help="the package: OUTPUT/adapter of a training run, or peft's files")
    parser.add_argument("--server", required=True, metavar="URL", help="for example http://localhost:8000")
    parser.add_argument("--as", required=True, dest="name", metavar="NAME", help="the name that requests will use")
    parser.add_argument("--replace", action="store_true", help="replace the adapter of this name; no request fails")
    parser.add_argument("--allow-noop", action="store_true", help="publish it even if it answers as the base does")
    parser.add_argument("--admin-key", default=os.environ.get("HOTSWAP_ADMIN_KEY"), help="default: $HOTSWAP_ADMIN_KEY")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return _guarded(_publish, parser.parse_args(argv))


def _guarded(work: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    from adapters.errors import AdapterError, BaseModelError
    from trainer.errors import TrainerError

    try:
        return work(args)
    except (TrainerError, AdapterError, BaseModelError) as error:
        print(f"hotswap: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _train(args: argparse.Namespace) -> int:
    from trainer.config_file import load_config

    config = load_config(args.config, args.overrides)
    _silence_libraries()
    from trainer.progress import make_display
    from trainer.run import train as run

    result = run(config, resume=args.resume, overwrite=args.overwrite, display=make_display(args.quiet))
    if result.stopped_by is not None:
        print(f"stopped at step {result.steps}; go on with: hotswap train {result.output}/config.yaml --resume")
        return 128 + result.stopped_by
    figures = "  ".join(f"{name} {value:g}" for name, value in result.metrics.items())
    print(f"trained {result.steps} steps  {figures}")
    print(f"package: {result.package}")
    return 0


def _publish(args: argparse.Namespace) -> int:
    from trainer.publish import publish as upload
    from trainer.publish import show_progress

    published = upload(
        args.directory,
        args.server,
        args.name,
        replace=args.replace,
        allow_noop=args.allow_noop,
        admin_key=args.admin_key,
        timeout=args.timeout,
        progress=None if args.quiet else show_progress,
    )
    print(f"published {published.name} version {published.version}  digest {published.digest}")
    for warning in published.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _silence_libraries() -> None:
    """Their bars and hints would mix with ours; errors still come through."""
    import transformers

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
