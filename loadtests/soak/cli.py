"""The command line of the soak, and its course: start servers, let everybody at them, look at what is left."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import tempfile
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from loadtests.soak import saboteurs
from loadtests.soak.changer import Changer
from loadtests.soak.clients import DeafReaders, bystander, comparer, leaver
from loadtests.soak.database import Database, PostgreSQL, open_database
from loadtests.soak.leaks import Holdings, Kept, Limits, find_held_by_the_deaf, find_kept, find_leaks, until
from loadtests.soak.ledger import AWAY, DATABASE, HANGS, KILLS, READ_ONLY, SERVER_KILLS
from loadtests.soak.references import References
from loadtests.soak.server import Server
from loadtests.soak.site import Site
from loadtests.soak.state import ABSENT, look

SEQUENCES, WAITING = 32, 96  # of each server: 128 admitted at once, what one request may ask for
BASE = "soaked"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The settings of one invocation; exits with code 2 and a message on a bad one."""
    parser = argparse.ArgumentParser(
        prog="loadtests.soak",
        description="Load, changes, rude clients and faults on servers of one catalog; every answer is compared.",
        epilog="Further flags, after --, go to hotswap serve. Of what happens every so many seconds, 0 is never, and"
        " else each happens once at least.",
    )
    parser.add_argument("--references", type=Path, required=True, help="folder with references.json")
    parser.add_argument("--seconds", type=float, default=480.0, help="of load (default %(default)g)")
    parser.add_argument("--servers", type=int, choices=(1, 2), default=2, help="of one catalog (default %(default)s)")
    parser.add_argument("--catalog", choices=("auto", "sqlite", "postgresql"), default="auto", help="auto: PostgreSQL"
                        " where Debian's package is installed, else SQLite")  # fmt: skip
    parser.add_argument("--faults-every", type=float, default=60.0, help="seconds between kills and hangs of"
                        " engines (default %(default)g)")  # fmt: skip
    parser.add_argument("--server-kills-every", type=float, default=90.0, help="seconds between kills of servers"
                        " (default %(default)g)")  # fmt: skip
    parser.add_argument("--database-stops-every", type=float, default=75.0, help="seconds between crashes of a"
                        " PostgreSQL (default %(default)g)")  # fmt: skip
    parser.add_argument("--store-faults-every", type=float, default=45.0, help="seconds between faults of the folder"
                        " of packages (default %(default)g)")  # fmt: skip
    parser.add_argument("--engine-timeout", type=float, default=5.0, help="the server's (default %(default)g)")
    parser.add_argument("--comparers", type=int, default=6, help="who ask and compare (default %(default)s)")
    parser.add_argument("--fixed", type=int, default=4, help="adapters that nobody changes (default %(default)s)")
    parser.add_argument("--names", type=int, default=3, help="adapters that change all the time (default %(default)s)")
    parser.add_argument("--canaries", action=argparse.BooleanOptionalAction, default=True, help="share requests to"
                        " them between versions")  # fmt: skip
    parser.add_argument("--max-resident", type=int, default=4, help="versions in memory of each server at once, fewer"
                        " than there are; 0: all (default %(default)s)")  # fmt: skip
    parser.add_argument("--deaf", type=int, default=3, help="connections that never read (default %(default)s)")
    parser.add_argument("--deaf-seconds", type=float, default=60.0, help="after the engine's work within"
                        " which they must hold nothing; 0: not looked at (default %(default)g)")  # fmt: skip
    parser.add_argument(
        "--growth-mb", type=float, default=150.0, help="allowed to a server's memory (default %(default)g)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("soak-out"), help="folder of report and logs")
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
    print(f"in {args.out}: soak.json, {', '.join(_log(i).name for i in range(args.servers))}")
    return 0 if report["sound"] else 1


def _log(number: int) -> Path:
    return Path(f"server{number + 1}.log")


async def _run(args: argparse.Namespace, references: References, data_dir: Path) -> tuple[dict[str, object], str]:
    packages = references.packages
    fixed = {f"fixed{i}": packages[i % len(packages)] for i in range(args.fixed)}
    adapters = [f"--adapter={name}={package.path}" for name, package in fixed.items()]
    async with AsyncExitStack() as stack:
        database = await asyncio.to_thread(open_database, args.catalog, data_dir)
        if isinstance(database, PostgreSQL):
            stack.callback(database.close)
        flags = [*_flags(args, references, data_dir), *database.flags, *args.flags]
        starts = [Server.start([*flags, *(adapters if not n else ())], args.out / _log(n)) for n in range(args.servers)]
        started = await asyncio.gather(*starts, return_exceptions=True)
        servers = [server for server in started if isinstance(server, Server)]
        for server in servers:
            stack.push_async_callback(server.stop)
        for failure in started:
            if isinstance(failure, BaseException):
                raise failure
        site = Site(tuple(servers), references, BASE, fixed, tuple(f"churned{i}" for i in range(args.names)))
        for name, package in fixed.items():
            site.ledger.knows(f"{name}@1", package)
        held = await _soak(args, site, data_dir, database)
        for server in servers:
            if (status := await server.stop()) != 0:
                site.ledger.wrong.append(f"{server.name} ended with status {status}")
    site.ledger.judge_all()
    report = {"catalog": type(database).__name__, **site.ledger.report(), **held.report()}
    return report, "\n".join([f"{args.servers} servers on {report['catalog']}", site.ledger.text(), *held.lines()])


def _flags(args: argparse.Namespace, references: References, data_dir: Path) -> list[str]:
    return [
        *("--model", str(references.model), "--served-model-name", BASE, "--quantize", "none", "--dtype", "float32"),
        *("--max-num-seqs", str(SEQUENCES), "--max-waiting-requests", str(WAITING), "--log-level", "warning"),
        *("--engine-timeout", str(args.engine_timeout), "--data-dir", str(data_dir)),
        *("--max-resident", str(args.max_resident)),
    ]


class Held:
    """What servers held before and after."""

    def __init__(self, before: dict[str, Holdings], kept: Kept) -> None:
        self.before, self.kept_before = before, kept
        self.after: dict[str, Holdings] = {}
        self.kept_after = kept

    def report(self) -> dict[str, Any]:
        """For a file."""
        before = {name: vars(holdings) for name, holdings in self.before.items()}
        after = {name: vars(holdings) for name, holdings in self.after.items()}
        return {"before": {**before, "kept": vars(self.kept_before)}, "after": {**after, "kept": vars(self.kept_after)}}

    def lines(self) -> list[str]:
        """For a person."""
        lines = [
            f"{name}: memory of the HTTP process {was.megabytes:.0f} MB before, {now.megabytes:.0f} MB after; of the "
            f"engine {was.engine_megabytes:.0f} MB and {now.engine_megabytes:.0f} MB; descriptors {was.descriptors} "
            f"and {now.descriptors}"
            for (name, was), now in zip(self.before.items(), self.after.values(), strict=True)
        ]
        return [*lines, f"kept before {self.kept_before}, after {self.kept_after}"]


async def _soak(args: argparse.Namespace, site: Site, data_dir: Path, database: Database) -> Held:
    """Warm up, look, load, look again."""
    random = Random(args.seed)
    for server in site.servers:  # of which the first brought the adapters
        for name in site.fixed:
            await until(partial(look, server, name), lambda state: state not in (None, ABSENT))
    changers = [Changer(site, name, Random(random.random()), canaries=args.canaries) for name in site.churned]
    for changer in changers[:1]:  # libraries are imported, pools filled
        await changer.once_each()
    kept = await until(
        lambda: Kept.of(data_dir, database), lambda now: now.packages == now.rows["packages"] == args.fixed
    )
    held = Held({server.name: await Holdings.of(site, server) for server in site.servers}, kept)
    deaf = DeafReaders(site, Random(random.random()), args.deaf)
    work = [changer.run() for changer in changers] + [deaf.run()]
    work += [comparer(site, Random(random.random())) for _ in range(args.comparers)]
    work += [bystander(site, Random(random.random())), leaver(site, Random(random.random()))]
    faults, breaking = _sabotage(args, site, random, data_dir / "packages", database)
    await asyncio.gather(site.end_after(args.seconds, faults), *work, *breaking)
    if args.deaf_seconds:
        await find_held_by_the_deaf(site, deaf, args.deaf_seconds, sequences=SEQUENCES + WAITING)
    deaf.hang_up()
    for changer in changers:
        await changer.remove()
    held.kept_after = await find_kept(site, kept, data_dir, database)
    most = Limits(SEQUENCES + WAITING, args.growth_mb)
    for server in site.servers:
        held.after[server.name] = await find_leaks(site, server, held.before[server.name], most=most)
    return held


def _sabotage(
    args: argparse.Namespace, site: Site, random: Random, packages: Path, database: Database
) -> tuple[list[str], list[Coroutine[Any, Any, None]]]:
    """The faults that there are to be, and who makes them."""

    def own() -> Random:
        return Random(random.random())

    plans: list[tuple[float, dict[str, saboteurs.Strike]]] = [
        (2 * args.faults_every, {KILLS: partial(saboteurs.hit_engine, site, own(), signal.SIGKILL)}),
        (2 * args.faults_every, {HANGS: partial(saboteurs.hit_engine, site, own(), signal.SIGSTOP)}),
        (args.server_kills_every, {SERVER_KILLS: partial(saboteurs.kill_server, site, own())}),
    ]
    if isinstance(database, PostgreSQL):
        plans.append((args.database_stops_every, {DATABASE: partial(saboteurs.stop_database, site, own(), database)}))
    store: dict[str, saboteurs.Strike] = {AWAY: partial(saboteurs.take_away, site, own(), packages)}
    if args.store_faults_every and saboteurs.can_write_protect(packages):
        store[READ_ONLY] = partial(saboteurs.write_protect, site, own(), packages)
    plans.append((args.store_faults_every, store))
    wanted = [(every, strikes) for every, strikes in plans if every]
    kinds = [kind for _, strikes in wanted for kind in strikes]
    return kinds, [saboteurs.at_moments(site, own(), every, *strikes.values()) for every, strikes in wanted]
