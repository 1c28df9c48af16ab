"""``hotswap top``: per-adapter latency and traffic of a running server, as they change.

Exit codes: 0 done, 1 the server cannot be asked, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections import deque
from typing import TYPE_CHECKING

from hotswap.errors import HotswapError
from hotswap.top.figures import SORTS, figures, ordered
from trainer.commands.server_options import add_server_options, admin_key

if TYPE_CHECKING:
    import httpx

    from hotswap.top.scrape import Scrape

_LINES = 6  # of a screen that are no rows
_DUTY = 10  # a look that takes long is followed by a pause this many times as long
_EXAMPLES = """\
examples:
  hotswap top                                      # of the server on this machine; Ctrl-C leaves
  hotswap top --url https://models.example --key-file ops.key --sort ttft
  hotswap top --once --window 10 --json            # for programs: what happened in ten seconds

Where a server asks for keys, one with the scope read-only is enough.
"""


def main(argv: list[str]) -> int:
    """Run ``hotswap top``. Raises our own errors for the caller to print."""
    args = _parser().parse_args(argv)
    import httpx

    from trainer.serving.client import bearer

    url = args.server.rstrip("/").removesuffix("/v1")
    with httpx.Client(base_url=url, headers=bearer(admin_key(args)), timeout=args.timeout) as http:
        return _once(http, args) if args.once else _live(http, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hotswap top",
        description="Show what a server does, by adapter version: requests, tokens, errors and latencies, live.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sort", choices=SORTS, default="tokens", help="what comes first (default: %(default)s)")
    parser.add_argument("--rows", type=_count, metavar="N", help="at most so many (default: what fits)")
    parser.add_argument(
        "--window",
        type=_positive,
        default=30.0,
        metavar="SECONDS",
        help="figures are of so long (default: %(default)g)",
    )
    parser.add_argument(
        "--interval", type=_positive, default=1.0, metavar="SECONDS", help="between two looks (default: %(default)g)"
    )
    parser.add_argument("--once", action="store_true", help="print one table after --window seconds, and end")
    parser.add_argument("--json", action="store_true", help="with --once: print the figures as JSON, in seconds")
    add_server_options(parser)
    parser.set_defaults(timeout=10.0)
    return parser


def _once(http: httpx.Client, args: argparse.Namespace) -> int:
    from rich.console import Console

    from hotswap.top.table import screen

    console = Console()
    then = _scrape(http)
    time.sleep(args.window)
    found = figures(then, _scrape(http))
    if args.json:
        rows = [dataclasses.asdict(row) for row in ordered(found.rows, args.sort)[: args.rows]]
        print(json.dumps({"server": dataclasses.asdict(found.whole), "rows": rows}, indent=2))
    else:
        console.print(screen(found, sort=args.sort, most=args.rows or len(found.rows), width=console.width))
    return 0


def _live(http: httpx.Client, args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.live import Live

    from hotswap.top.table import screen

    console = Console()
    if args.json or not console.is_terminal:
        raise HotswapError("--json goes with --once" if args.json else "the output is no terminal; give --once")
    looks = deque([_scrape(http)])
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            began, note = time.monotonic(), ""
            try:
                looks.append(_scrape(http))
            except HotswapError as error:
                note = f"{error}; trying again"
            while len(looks) > 2 and looks[1].at <= looks[-1].at - args.window:
                looks.popleft()
            most = args.rows or max(console.height - _LINES, 1)
            found = figures(looks[0], looks[-1])
            live.update(screen(found, sort=args.sort, most=most, width=console.width, note=note), refresh=True)
            time.sleep(max(args.interval, (time.monotonic() - began) * _DUTY))


def _scrape(http: httpx.Client) -> Scrape:
    """Ask once. Raises HotswapError."""
    import httpx

    from hotswap.top.scrape import Scrape

    try:
        response = http.get("/metrics")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise HotswapError(f"{http.base_url} cannot be reached: {error or type(error).__name__}") from error
    if response.status_code in (401, 403):
        raise HotswapError(
            f"the server shows its figures only to those with a key ({response.status_code}); give one with "
            "--admin-key-file or $HOTSWAP_ADMIN_KEY; the scope read-only is enough"
        )
    try:
        scrape = Scrape(response.text, time.monotonic())
    except (ValueError, KeyError) as error:
        raise HotswapError(f"{http.base_url} does not answer with metrics as a hotswap server does") from error
    if response.status_code != 200 or not scrape.label("hotswap_requests_running", "model"):
        raise HotswapError(f"{http.base_url} does not answer with metrics as a hotswap server does")
    return scrape


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 10**6:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, not {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"must be 0.1 to 3600 seconds, not {text!r}")
    return seconds
