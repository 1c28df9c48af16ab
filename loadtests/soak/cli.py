"""The command line of the soak, and its course: start a server, let everybody at it, look at what is left."""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

from loadtests.soak.asking import open_session
from loadtests.soak.clients import DeafReaders, bystander, comparer, leaver
from loadtests.soak.leaks import Holdings, find_held_by_the_deaf, find_leaks, until
from loadtests.soak.operators import Changer, saboteur
from loadtests.soak.references import References
from loadtests.soak.server import Server
from loadtests.soak.site import Site

SEQUENCES, WAITING = 32, 96  # of the server: 128 admitted at once, what one request may ask for
BASE, FIXED = "soaked", 2


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The settings of one invocation; exits with code 2 and a message on a bad one."""
    parser = argparse.ArgumentParser(
        prog="loadtests.soak",
        description="Load, changes, rude clients and faults on one server; every answer held against known ones.",
        epilog="Further flags, after --, go to hotswap serve.",
    )
    parser.add_argument("--references", type=Path, required=True, help="folder with references.json")
    parser.add_argument("--seconds", type=float, default=480.0, help="of load (default %(default)g)")
    parser.add_argument("--faults-every", type=float, default=60.0, help="seconds between kills and hangs of"
                        " the engine, one of each at least; 0: none (default %(default)g)")  # fmt: skip
    parser.add_argument("--engine-timeout", type=float, default=5.0, help="the server's (default %(default)g)")
    parser.add_argument("--comparers", type=int, default=6, help="who ask and compare (default %(default)s)")
    parser.add_argument("--names", type=int, default=3, help="adapters that change all the time (default %(default)s)")
    parser.add_argument("--deaf", type=int, default=3, help="connections that never read (default %(default)s)")
    parser.add_argument("--deaf-seconds", type=float, default=60.0, help="after the engine's work within"
                        " which they must hold nothing; 0: not looked at (default %(default)g)")  # fmt: skip
    parser.add_argument(
        "--growth-mb", type=float, default=150.0, help="allowed to the server's memory (default %(default)g)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("soak-out"), help="folder of report and log")
    parser.add_argument("flags", nargs="*", metavar="-- FLAGS")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the soak; 0 when nothing was wrong, lost or leaked, else 1."""
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    references = References.read(args.references)
    with tempfile.TemporaryDirectory(prefix="soak-") as data_dir:
        report, text = asyncio.run(_run(args, references, Path(data_dir)))
    (args.out / "soak.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(text)
    print(f"in {args.out}: soak.json, server.log")
    return 0 if report["sound"] else 1


async def _run(args: argparse.Namespace, references: References, data_dir: Path) -> tuple[dict[str, object], str]:
    fixed = {f"fixed{i}": package for i, package in enumerate(references.packages[:FIXED])}
    adapters = [f"--adapter={name}={package.path}" for name, package in fixed.items()]
    server = await Server.start(_flags(args, references, adapters, data_dir), args.out / "server.log")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop)
        session = await stack.enter_async_context(open_session(server.url))
        names = tuple(f"churned{i}" for i in range(args.names))
        site = Site(server, session, references, BASE, fixed, names)
        for name, package in fixed.items():
            site.ledger.knows(f"{name}@1", package)
        before, after = await _soak(args, site, data_dir)
        status = await server.stop()
    if status != 0:
        site.ledger.wrong.append(f"the server ended with status {status}")
    site.ledger.judge_all()
    memory = (
        f"memory of the HTTP process {before.megabytes:.0f} MB before, {after.megabytes:.0f} MB after; of the engine "
        f"{before.engine_megabytes:.0f} MB and {after.engine_megabytes:.0f} MB; descriptors {before.descriptors} and "
        f"{after.descriptors}"
    )
    held = {"before": vars(before), "after": vars(after)}
    return {**site.ledger.report(), **held}, f"{site.ledger.text()}\n{memory}"


def _flags(args: argparse.Namespace, references: References, adapters: list[str], data_dir: Path) -> list[str]:
    return [
        *("--model", str(references.model), "--served-model-name", BASE, "--quantize", "none", "--dtype", "float32"),
        *("--max-num-seqs", str(SEQUENCES), "--max-waiting-requests", str(WAITING), "--log-level", "warning"),
        *("--engine-timeout", str(args.engine_timeout), "--data-dir", str(data_dir)),
        *adapters,
        *args.flags,
    ]


async def _soak(args: argparse.Namespace, site: Site, data_dir: Path) -> tuple[Holdings, Holdings]:
    """Warm up, look, load, look again."""
    random = Random(args.seed)
    changers = [Changer(site, name, Random(random.random())) for name in site.churned]
    for changer in changers:  # libraries are imported, pools filled
        await changer.step()
        await changer.remove()
    before = await until(lambda: Holdings.of(site, data_dir), lambda now: now.adapters == len(site.fixed))
    deaf = DeafReaders(site, Random(random.random()), args.deaf)
    work = [changer.run() for changer in changers] + [deaf.run()]
    work += [comparer(site, Random(random.random())) for _ in range(args.comparers)]
    work += [bystander(site, Random(random.random())), leaver(site, Random(random.random()))]
    if args.faults_every:
        work.append(saboteur(site, Random(random.random()), args.faults_every))
    await asyncio.gather(site.end_after(args.seconds, faults=bool(args.faults_every)), *work)
    if args.deaf_seconds:
        await find_held_by_the_deaf(site, deaf, args.deaf_seconds, sequences=SEQUENCES + WAITING)
    deaf.hang_up()
    for changer in changers:
        await changer.remove()
    return before, await find_leaks(site, before, data_dir, sequences=SEQUENCES + WAITING, growth_mb=args.growth_mb)
