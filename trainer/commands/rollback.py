"""``hotswap rollback``. Exit codes: 0 done, 1 one of our errors, 2 wrong usage."""

from __future__ import annotations

import argparse
import os

from trainer.commands.common import guarded


def rollback(argv: list[str]) -> int:
    """Run ``hotswap rollback``."""
    parser = argparse.ArgumentParser(
        prog="hotswap rollback",
        description="Let an adapter's name serve the version again that it served before. No request fails.",
    )
    parser.add_argument("name", help="the adapter's name")
    parser.add_argument("--server", required=True, metavar="URL", help="for example http://localhost:8000")
    parser.add_argument("--to", type=int, metavar="VERSION", help="a version that has been live (default: the last)")
    parser.add_argument(
        "--from", type=int, dest="expected", metavar="VERSION", help="only if this version is live: safe to repeat"
    )
    parser.add_argument("--admin-key", default=os.environ.get("HOTSWAP_ADMIN_KEY"), help="default: $HOTSWAP_ADMIN_KEY")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="default: %(default)s")
    args = parser.parse_args(argv)
    for option, value in (("--to", args.to), ("--from", args.expected), ("--timeout", args.timeout)):
        if value is not None and value <= 0:
            parser.error(f"{option} must be above 0")
    return guarded(_rollback, args)


def _rollback(args: argparse.Namespace) -> int:
    from trainer.publishing.admin import AdminClient

    with AdminClient(args.server, args.admin_key, timeout=args.timeout) as client:
        live = client.rollback(args.name, args.to, expected_live=args.expected)
    if live.replaced is None:
        print(f"{live.name} serves version {live.version} already")
    else:
        print(f"rolled {live.name} back from version {live.replaced} to {live.version}  digest {live.digest}")
    return 0
