"""What the trainer's commands share: errors to one plain line, quiet libraries, and a command line of settings."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from types import FrameType
from typing import Any

from trainer.config.scalars import SWITCHES

_YAML = (".yaml", ".yml")


def guarded(work: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run ``work``; one of our errors becomes a plain line on stderr and exit code 1, or 2 where a flag is unknown."""
    from adapters.errors import AdapterError
    from bases.errors import BaseModelError
    from trainer.distributed.launch import leave_error
    from trainer.errors import ConfigError, TrainerError, in_lines

    try:
        return work(args)
    except (TrainerError, AdapterError, BaseModelError) as error:
        if getattr(args, "unknown", []) and isinstance(error, ConfigError):
            args.wrong_usage(ConfigError(*args.unknown, *error.refusals))
        if not leave_error(in_lines(error)):
            print(f"hotswap: {in_lines(error)}", file=sys.stderr)
        return 1


def end_on_sigterm() -> None:
    """Let SIGTERM end the process as Ctrl-C does, so that what it started is stopped too.

    What asyncio.run makes of Ctrl-C, it then makes of SIGTERM: its main task is cancelled. An exception that came in
    the midst of anything would be lost where nobody can receive it, in a destructor or a callback of the interpreter.
    """
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_: int, frame: FrameType | None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):  # a shell starts what it puts into the background so that it ignores Ctrl-C
        handler = signal.default_int_handler
    handler(signal.SIGINT, frame)


def silence_libraries() -> None:
    """Their bars and hints would mix with ours; errors still come through."""
    import transformers

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def import_bitsandbytes() -> None:
    """Import bitsandbytes without torch's compiler, which takes a second: what it has compiled at once, and few runs
    call, is compiled when it is first called.
    """
    import torch

    compile_now = torch.compile

    def compile_later(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        @cache
        def compiled() -> Callable[..., Any]:
            return compile_now(function, **options)

        @wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            return compiled()(*args, **named)

        return call

    torch.compile = compile_later  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compile_now


def split_flags(
    argv: Sequence[str],
    own: Mapping[str, bool],
    is_switch: Callable[[str], bool],
    is_text: Callable[[str], bool] = lambda _: False,
) -> tuple[list[str], list[str]]:
    """The tokens of ``argv`` that are the command's own, and the settings as ``key=value``.

    ``own`` says of the command's flags whether they take a value. A setting without a value is true: one that
    ``is_switch``, or one that nothing but another flag follows. Several values (``--target_modules a b``) are a list,
    or the words of a setting that ``is_text``. What follows a switch is its value, unless it is a file or a setting.
    """
    spelled = {flag.replace("_", "-"): flag for flag in own}
    mine: list[str] = []
    settings: list[str] = []
    at = 0
    while at < len(argv):
        token = argv[at]
        name, equals, value = token.partition("=")
        flag = spelled.get(name.replace("_", "-"))
        end = at + 1
        if flag and own[flag]:
            end += not equals
            mine += [flag + equals + value, *argv[at + 1 : end]]
        elif flag:
            end += not equals and argv[end : end + 1] != [] and argv[end].lower() in SWITCHES
            mine += _switched(flag, value if equals else "".join(argv[at + 1 : end]))
        elif token.startswith("--"):
            key = name[2:].replace("-", "_")
            end += 0 if equals else _count_values(argv[end:], is_switch(key))
            values = [value] if equals else argv[at + 1 : end]
            settings.append(f"{key}={' '.join(values) if values and is_text(key) else _joined(values)}")
        else:
            (settings if equals else mine).append(token)
        at = end
    return mine, settings


def _switched(flag: str, value: str) -> list[str]:
    """``flag``, which takes no value, as argparse is to see it when ``value`` stands behind it."""
    if value.lower() in SWITCHES:
        return [flag] if SWITCHES[value.lower()] else []
    return [f"{flag}={value}" if value else flag]


def _count_values(rest: Sequence[str], is_switch: bool) -> int:
    """How many of the tokens after a flag are its values."""
    count = 0
    while count < len(rest) and _is_value(rest[count], first=count == 0):
        count += 1
    if is_switch and count:
        is_other = "=" in rest[0] or rest[0].endswith(_YAML) or os.path.isfile(rest[0])
        return int(rest[0].lower() in SWITCHES or not is_other)
    return count


def _is_value(token: str, *, first: bool) -> bool:
    """A first value may be anything but a flag; more of them are words."""
    return not token.startswith("--") and (first or not ("=" in token or token.endswith(_YAML)))


def _joined(values: Sequence[str]) -> str:
    if len(values) == 1 or (values and values[0].startswith("[") and values[-1].endswith("]")):
        return " ".join(values)
    return f"[{', '.join(map(_item, values))}]" if values else "true"


def _item(value: str) -> str:
    """``value`` as an item of a YAML list."""
    return json.dumps(value, ensure_ascii=False) if re.search(r"""[],[{}#'":\s]""", value) else value


SETTINGS_HELP = """\
settings, as key=value, --key value or --key=value; a key is dotted (training.learning_rate) or its last part alone
(learning_rate). HOTSWAP_TRAIN_<KEY> in the environment does the same, with __ for the dot. The most used:

  output                        the directory that receives the run
  base                          the base model: a name in the cache, or a directory
  data, data.validation         file, folder or hub:owner/name; a share, a count of rows or a file to validate on
  data.columns.prompt, data.columns.response, data.template, data.system_prompt, data.max_length
  method                        lora, prefix, prompt, p_tuning, ia3, bottleneck, freeze, ...
  method.r, method.alpha, method.target_modules (lora); method.tokens, method.projection (prefix)
  learning_rate                 default: the method's own
  epochs, max_steps, batch_size, gradient_accumulation, warmup, scheduler, optimizer
  quantize                      gguf, nf4, int8: the base as it is served; dtype, gradient_checkpointing, packing
  eval_steps, save_steps, best_checkpoint, early_stopping, seed, tensorboard

Names of the ChatGLM scripts, LLaMA-Factory, Axolotl, TRL and transformers are understood (--pre_seq_len,
--quantization_bit, --lora_rank, --cutoff_len, ...): docs/training/aliases.md. All keys: docs/training/running.md.
"""


def parse_settings(
    parser: argparse.ArgumentParser, argv: Sequence[str], *, needs_any: bool = True
) -> tuple[argparse.Namespace, list[str]]:
    """What ``parser`` knows, and the settings as ``key=value``. Wrong usage ends the process with code 2.

    ``needs_any``: a file or a setting must be given.
    """
    own = {flag: action.nargs != 0 for flag, action in parser._option_string_actions.items()}
    mine, settings = split_flags(argv, own, _is_switch, _is_text)
    args = parser.parse_args(mine)
    if needs_any and args.config is None and not settings and not getattr(args, "shape", None):
        parser.error("give a YAML file, or settings such as --data FILE --output DIR")
    given = {setting.partition("=")[0] for setting in settings}
    flags = [token[2:].partition("=")[0].replace("-", "_") for token in argv if token.startswith("--")]
    args.unknown = [problem for flag in flags if flag in given and (problem := _unknown(flag))]
    args.wrong_usage = parser.error
    return args, settings


def _is_switch(key: str) -> bool:
    from trainer.config.loading import is_switch_name

    return is_switch_name(key)


def _is_text(key: str) -> bool:
    from trainer.config.loading import is_text_name

    return is_text_name(key)


def _unknown(key: str) -> str:
    from trainer.config.loading import unknown_name

    return unknown_name(key)
