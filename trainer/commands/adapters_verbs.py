"""The verbs of ``hotswap adapters`` but the upload: each one's arguments, and its call of the server's admin API."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.commands import adapters_tables as tables
from trainer.errors import PublishError
from trainer.serving.answers import listed

if TYPE_CHECKING:
    from trainer.serving.client import AdminClient, ServedVersion

DEFAULT = "default"  # instead of a setting's value: the server's own
_SETTINGS: dict[str, tuple[str, type[int] | type[float], str]] = {  # flag: field of the PATCH, its type, what it is
    "weight": ("weight", float, "its share of the machine beside other adapters (1)"),
    "priority": ("priority", int, "higher ones go first (0)"),
    "retention": ("retention", int, "versions to keep"),
    "idle-ttl": ("idle_ttl_seconds", float, "seconds without a request after which it leaves the memory"),
}
_LIMITS = {
    "rpm": ("requests_per_minute", "requests a minute"),
    "tpm": ("tokens_per_minute", "tokens a minute"),
    "concurrency": ("max_concurrency", "sequences that run at once"),
    "queue": ("max_queue", "sequences that wait at once"),
}


@dataclass(frozen=True)
class Done:
    """What a verb has to tell: the server's answer, the same in words for people, and warnings."""

    answer: Mapping[str, Any]
    text: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verb:
    """One verb: what it does in a few words, its arguments, and its work."""

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[AdminClient, argparse.Namespace], Done]


# ---- values of arguments ----


def version_argument(text: str) -> int:
    """The number of a version, ``3`` or ``v3``."""
    digits = text.removeprefix("v")
    if not (digits.isascii() and digits.isdigit() and 0 < int(digits) < 10**9):
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a version, like 3")
    return int(digits)


def live_argument(text: str) -> int:
    """As ``version_argument``, or 0: none."""
    return 0 if text == "0" else version_argument(text)


def share_argument(text: str) -> float:
    """A share of the traffic, ``5%`` or ``0.05``, above 0 and at most 1. A bare 5 could mean either."""
    digits, is_percent = text.removesuffix("%"), text.endswith("%")
    try:
        share = float(digits) / (100 if is_percent else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1 or (share == 1 and not is_percent):
        raise argparse.ArgumentTypeError(f"{text!r} is not a share of the traffic, like 5% or 0.05")
    return round(share, 12)


def rule_argument(text: str) -> tuple[str, float]:
    """``NAME=NUMBER``."""
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if not name.isidentifier() or not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no rule, like max_error_rate=0.02")
    return name, int(value) if value.is_integer() else value


def target_argument(text: str) -> tuple[str, int | None]:
    """``NAME`` or ``NAME@VERSION``."""
    name, at, number = text.partition("@")
    return name, version_argument(number) if at else None


def _setting(kind: type[int] | type[float]) -> Callable[[str], float | None]:
    def value(text: str) -> float | None:
        if text == DEFAULT:
            return None
        try:
            return kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is neither {what} nor '{DEFAULT}'") from None

    return value


def add_guards(parser: argparse.ArgumentParser, *, live: bool = True) -> None:
    """Add the flags that say what must hold on the server for a change to be made; ``live``: both of them."""
    group = parser.add_argument_group("only if nobody changed it meanwhile")
    if live:
        group.add_argument(
            "--expected-live", "--from", type=live_argument, metavar="VERSION", dest="expected_live",
            help="only if this version is live (0: none)",
        )  # fmt: skip
    group.add_argument(
        "--if-match", metavar="ETAG", help="only if `show` gives this etag still; '*': only if it exists"
    )


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the adapter's name")


def _guards(args: argparse.Namespace) -> dict[str, Any]:
    return {"expected_live": args.expected_live, "if_match": args.if_match}


# ---- looking ----


def _no_arguments(_: argparse.ArgumentParser) -> None: ...


def _list(client: AdminClient, _: argparse.Namespace) -> Done:
    answer = client.adapters()
    return Done(answer, tables.adapters_table(answer))


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", type=target_argument, metavar="NAME[@VERSION]", help="the adapter, or a version of it"
    )


def _show(client: AdminClient, args: argparse.Namespace) -> Done:
    name, number = args.target
    answer = client.adapter(name)
    if number is None:
        return Done(answer, tables.adapter_text(answer), tuple(answer.get("warnings") or ()))
    version = next((one for one in listed(answer, "versions") if one.get("version") == number), None)
    if version is None:
        raise PublishError(f"{name} has no version {number} there; `hotswap adapters show {name}` lists those it has")
    return Done(version, tables.versions_table([version]), tuple(version.get("warnings") or ()))


def _history_arguments(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument("--limit", type=version_argument, default=50, metavar="N", help="the last N (default: 50)")


def _history(client: AdminClient, args: argparse.Namespace) -> Done:
    answer = client.events(name=args.name, limit=args.limit)
    return Done(answer, tables.events_table(answer))


# ---- which version is live ----


def _activate_arguments(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument("version", type=version_argument, metavar="VERSION", help="a candidate, or an older version")
    add_guards(parser)


def _activate(client: AdminClient, args: argparse.Namespace) -> Done:
    return _now_live(client.activate(args.name, args.version, **_guards(args)))


def _rollback_arguments(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument(
        "--to", type=version_argument, metavar="VERSION", help="a version that has been live (default: the last)"
    )
    add_guards(parser)


def _rollback(client: AdminClient, args: argparse.Namespace) -> Done:
    live = client.rollback(args.name, args.to, **_guards(args))
    if live.replaced is None:
        return _now_live(live)
    text = f"rolled {live.name} back from version {live.replaced} to {live.version}  digest {live.digest}"
    return Done(live.answer, text, live.warnings)


def _now_live(live: ServedVersion) -> Done:
    if live.answer.get("changed") is False:
        text = f"{live.name} serves version {live.version} already"
    else:
        before = f", before it {live.replaced}" if live.replaced else ""
        text = f"{live.name} serves version {live.version} now{before}  digest {live.digest}"
    return Done(live.answer, text, live.warnings)


# ---- shares of the traffic ----


def _canary_arguments(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument("version", nargs="?", type=version_argument, metavar="VERSION", help="a candidate or any other")
    parser.add_argument(
        "weight", nargs="?", type=share_argument, metavar="SHARE", help="of the requests to the name: 5%% or 0.05"
    )
    parser.add_argument("--weight", dest="share", type=share_argument, metavar="SHARE", help="the same as a flag")
    rules = parser.add_argument_group("what grows it, and what ends it, without anybody")
    rules.add_argument(
        "--step", action="append", type=share_argument, metavar="SHARE", dest="steps",
        help="the next share that it gets, 100%% at last: repeatable",
    )  # fmt: skip
    rules.add_argument("--step-seconds", type=float, metavar="S", help="that a step lasts")
    rules.add_argument("--step-requests", type=int, metavar="N", help="that a step lasts")
    rules.add_argument(
        "--rule", action="append", type=rule_argument, metavar="NAME=NUMBER", dest="rules",
        help="what aborts it, such as max_error_rate=0.02: repeatable",
    )  # fmt: skip
    rules.add_argument("--gate", action="append", metavar="EXPR", dest="gates", help="on scores, such as f1>=live-0.01")
    parser.add_argument("--off", action="store_true", help="let it have no share any more")
    parser.add_argument(
        "--shadow", action="store_true", help="give it copies of that share; its answers are compared and discarded"
    )
    add_guards(parser)


def _canary(client: AdminClient, args: argparse.Namespace) -> Done:
    weight = args.weight if args.share is None else args.share
    if args.off == (args.version is not None) or (not args.off and weight is None):
        args.wrong_usage("give a VERSION and a SHARE of the requests, like 3 5%, or --off")
    kind = "shadow" if args.shadow else "canary"
    further = _canary_plan(args)
    if further and (args.off or args.shadow):
        args.wrong_usage("steps, rules and gates are for a canary")
    share = None if args.off else {"version": args.version, "weight": weight, **further}
    answer = _changed(client, args, {kind: share}, f"to change the {kind}")
    if share is None:
        return Done(answer, f"{args.name} has no {kind} any more")
    of = "copies of the requests" if args.shadow else "the requests"
    return Done(answer, f"{args.name} gives version {args.version} {tables.percent(weight)} of {of}")


def _canary_plan(args: argparse.Namespace) -> dict[str, Any]:
    """What is to become of a canary by itself; what is not said stays as it is."""
    given = {name: getattr(args, name) for name in ("steps", "step_seconds", "step_requests")}
    rules = {**dict(args.rules or ()), **({"gates": args.gates} if args.gates else {})}
    plan = {name: value for name, value in given.items() if value is not None}
    return {**plan, "rules": rules} if rules else plan


def _changed(client: AdminClient, args: argparse.Namespace, fields: Mapping[str, Any], what: str) -> dict[str, Any]:
    expected = {} if args.expected_live is None else {"expected_live": args.expected_live}
    return client.change(args.name, {**fields, **expected}, what, if_match=args.if_match)


def _name_arguments(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    add_guards(parser)


def _promote_arguments(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    parser.add_argument(
        "version", nargs="?", type=version_argument, metavar="VERSION", help="which canary, where there are several"
    )
    add_guards(parser)


def _abort_arguments(parser: argparse.ArgumentParser) -> None:
    _promote_arguments(parser)
    parser.add_argument("--reason", metavar="TEXT", help="for those who ask later")


def _promote(client: AdminClient, args: argparse.Namespace) -> Done:
    answer = _acted(client, args, "promote")
    return Done(answer, f"the canary of {args.name} is live now: version {tables.plain(answer.get('version'))}")


def _abort(client: AdminClient, args: argparse.Namespace) -> Done:
    answer = _acted(client, args, "abort")
    if isinstance(shared := answer.get("traffic"), dict) and shared.get("canaries"):
        return Done(answer, f"{args.name} goes on with: {', '.join(tables.shares(answer))}")
    return Done(answer, f"{args.name} gives all its requests to the live version again")


def _acted(client: AdminClient, args: argparse.Namespace, verb: str) -> dict[str, Any]:
    names = ("version", "reason", "expected_live")
    fields = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    return client.act(args.name, verb, fields, f"to {verb} the canary", if_match=args.if_match)


# ---- settings ----


def _pin(client: AdminClient, args: argparse.Namespace) -> Done:
    answer = _changed(client, args, {"pinned": True}, "to pin it")
    return Done(answer, f"{args.name} is pinned: it stays in memory")


def _unpin(client: AdminClient, args: argparse.Namespace) -> Done:
    answer = _changed(client, args, {"pinned": False}, "to unpin it")
    return Done(answer, f"{args.name} is not pinned: it leaves the memory when others need the room")


def _set_arguments(parser: argparse.ArgumentParser) -> None:
    _add_name(parser)
    settings = parser.add_argument_group("settings", f"a number, or '{DEFAULT}' for the server's own")
    flags = {**_SETTINGS, **{flag: (field, int, what) for flag, (field, what) in _LIMITS.items()}}
    for flag, (field, kind, what) in flags.items():
        settings.add_argument(
            f"--{flag}", dest=field, type=_setting(kind), default=argparse.SUPPRESS, metavar="N", help=what
        )
    add_guards(parser)


def _set(client: AdminClient, args: argparse.Namespace) -> Done:
    given = vars(args)
    fields: dict[str, Any] = {field: given[field] for field, _, _ in _SETTINGS.values() if field in given}
    limits = {field: given[field] for field, _ in _LIMITS.values() if field in given}
    if limits:
        fields["limits"] = limits
    if not fields:
        args.wrong_usage("give a setting to change, such as --weight 2")
    answer = _changed(client, args, fields, "the settings")
    return Done(answer, f"{args.name}: {tables.settings_line(answer)}")


# ---- removing ----


def _rm_arguments(parser: argparse.ArgumentParser) -> None:
    _show_arguments(parser)
    parser.add_argument("--force", action="store_true", help="end the requests that it runs, and do not wait for them")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask, as a terminal is otherwise")
    add_guards(parser, live=False)


def _rm(client: AdminClient, args: argparse.Namespace) -> Done:
    name, number = args.target
    if not args.yes and sys.stdin.isatty():
        _ask(client, args)
    answer = client.remove(name, number, force=args.force, if_match=args.if_match)
    what = name if number is None else f"{name}@{number}"
    text = f"{what} was removed; requests that it runs {'were ended' if args.force else 'finish first'}"
    return Done(answer, text, tuple(answer.get("warnings") or ()))


def _ask(client: AdminClient, args: argparse.Namespace) -> None:
    """Ask the person at the terminal. Raises PublishError for anything but a yes."""
    name, number = args.target
    body = client.adapter(name)
    if number is None:
        what = f"{name} with {tables.numbers([one.get('version') for one in listed(body, 'versions')])}"
    else:
        what = f"{name}@{number}"
    sys.stderr.write(f"remove {what} from {client.server}? {tables.running_words(body)}. [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise PublishError("nothing was removed")


VERBS = {
    "list": Verb("list what is served: live versions, candidates, sizes", _no_arguments, _list),
    "show": Verb("show one adapter with its settings and versions", _show_arguments, _show),
    "activate": Verb("let a name serve a version: a candidate, or an older one", _activate_arguments, _activate),
    "rollback": Verb(
        "let a name serve the version again that it served before; no request fails", _rollback_arguments, _rollback
    ),
    "canary": Verb("give a version a share of a name's requests", _canary_arguments, _canary),
    "promote": Verb("let the canary serve all requests", _promote_arguments, _promote),
    "abort": Verb("take the canary out of the traffic", _abort_arguments, _abort),
    "pin": Verb("keep an adapter in memory", _name_arguments, _pin),
    "unpin": Verb("let an adapter leave the memory when others need the room", _name_arguments, _unpin),
    "set": Verb("set weight, priority, limits and retention of a name", _set_arguments, _set),
    "rm": Verb("stop serving an adapter, or delete a version that is not live", _rm_arguments, _rm),
    "history": Verb("show who changed what of an adapter, and when", _history_arguments, _history),
}
