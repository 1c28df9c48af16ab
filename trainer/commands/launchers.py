"""The command lines of other trainers as their guides print them: what stands before the script, and the script.

``torchrun --standalone --nproc-per-node=2 main.py --do_train`` behind ``hotswap train`` means ``--nproc 2 --do_train``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath

from trainer.errors import ConfigError

_LAUNCHERS = ("torchrun", "deepspeed", "accelerate", "python", "python3", "llamafactory-cli", "axolotl")
_SUBCOMMANDS = {"accelerate": ("launch",), "llamafactory-cli": ("train",), "axolotl": ("train",)}
_SWITCHES = ("standalone", "no_python", "no_local_rank", "m", "u", "module", "multi_gpu", "use_deepspeed", "use_fsdp")
_PROCESSES = ("nproc_per_node", "num_gpus", "num_processes")
_MACHINES = ("nnodes", "num_nodes", "num_machines")
_MODULES = ("axolotl.cli.train", "llamafactory.cli")
_METHODS = {"finetuning_freeze.py": "freeze", "finetuning_lora.py": "lora", "finetuning_pt.py": "prefix"}
_ASSIGNMENT = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)", re.DOTALL)


def without_launcher(argv: Sequence[str]) -> list[str]:
    """``argv`` with a launcher and a script at its beginning as our own flags. Raises ConfigError.

    What the shell would put into the environment before a launcher is put there. ``argv`` that begins with none of
    this comes back as it is.
    """
    rest = list(argv)
    before = 0
    while before < len(rest) and (_ASSIGNMENT.fullmatch(rest[before]) or rest[before] == "nohup"):
        before += 1
    launcher = PurePath(rest[before]).name if before < len(rest) else ""
    if launcher not in _LAUNCHERS:
        return _without_script(rest)
    os.environ.update((match[1], match[2]) for word in rest[:before] if (match := _ASSIGNMENT.fullmatch(word)))
    del rest[: before + 1]
    if rest and rest[0] in _SUBCOMMANDS.get(launcher, ()):
        del rest[0]
    own = _own_flags(_launcher_flags(rest))
    return [*own, *_without_script(rest)]


def _launcher_flags(rest: list[str]) -> Iterator[tuple[str, str]]:
    """The flags up to the script, with their values, taken out of ``rest``."""
    while rest and rest[0].startswith("-"):
        name, equals, value = rest.pop(0).lstrip("-").partition("=")
        name = name.replace("-", "_")
        if not equals and name not in _SWITCHES and len(rest) > 1 and not rest[0].startswith("-"):
            value = rest.pop(0)
        yield name, value


def _own_flags(flags: Iterator[tuple[str, str]]) -> list[str]:
    out: list[str] = []
    for name, value in flags:
        if name in _PROCESSES:
            count = _device_count() if value in ("auto", "gpu") else value
            out += ["--nproc", count] if count != "1" else []
        elif name in _MACHINES and value not in ("", "1", "1:1"):
            raise ConfigError(
                f"--{name} {value}: hotswap starts processes on this machine alone; on each of several run "
                f"torchrun --nnodes {value} ... -m hotswap train ..."
            )
        elif name == "include" and "@" in value:
            raise ConfigError(f"--include {value}: hotswap starts processes on this machine alone: --nproc N")
    return out


def _device_count() -> str:
    """As torchrun counts: one process for each CUDA device, one without any."""
    import torch

    return str(max(1, torch.cuda.device_count()))


def _without_script(rest: list[str]) -> list[str]:
    """``rest`` without the script that it begins with; some scripts are one method's."""
    if not rest or not (rest[0].endswith(".py") or rest[0] in _MODULES):
        return rest
    keys = {token.lstrip("-").partition("=")[0].replace("-", "_") for token in rest[1:]}
    script = PurePath(rest[0]).name
    method = _METHODS.get(script)
    if (
        script == "main.py"
        and keys & {"train_file", "prompt_column"}
        and not keys & {"pre_seq_len", "quantization_bit"}
    ):
        method = "full"  # the script of ChatGLM-6B and ChatGLM2-6B
    is_chosen = bool(keys & {"method", "method.type", "train_type", "finetuning_type"})
    return [*rest[1:], *([f"method={method}"] if method and not is_chosen else [])]
