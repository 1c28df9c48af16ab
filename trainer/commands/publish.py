"""``hotswap publish``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from trainer.commands.common import guarded


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
    return guarded(_publish, parser.parse_args(argv))


def _publish(args: argparse.Namespace) -> int:
    from trainer.publishing.upload import publish as upload
    from trainer.publishing.upload import show_progress

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
