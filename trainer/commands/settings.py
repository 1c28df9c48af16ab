"""What ``train`` and ``sweep`` share: a command line of own switches, perhaps a YAML file, and settings of the run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from trainer.config.flags import split_flags

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
  quantize                      nf4 or int8: train on the base as it is served; dtype, gradient_checkpointing, packing
  eval_steps, save_steps, best_checkpoint, early_stopping, seed, tensorboard

Names of the ChatGLM scripts, LLaMA-Factory, Axolotl, TRL and transformers are understood (--pre_seq_len,
--quantization_bit, --lora_rank, --cutoff_len, ...): docs/training/aliases.md. All keys: docs/training/running.md.
"""


def parse_settings(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What ``parser`` knows, and the settings as ``key=value``. Wrong usage ends the process with code 2."""
    own = {flag: action.nargs != 0 for flag, action in parser._option_string_actions.items()}
    mine, settings = split_flags(argv, own, _is_switch)
    args = parser.parse_args(mine)
    if args.config is None and not settings and not getattr(args, "shape", None):
        parser.error("give a YAML file, or settings such as --data FILE --output DIR")
    for flag in (token.partition("=")[0] for token in argv if token.startswith("--")):
        if flag not in own and (problem := _unknown(flag)):
            parser.error(problem)
    return args, settings


def _is_switch(key: str) -> bool:
    from trainer.config.aliases import ALIASES
    from trainer.config.keys import is_switch

    return ALIASES[key].is_switch if key in ALIASES else is_switch(key)


def _unknown(flag: str) -> str:
    """What is wrong with ``flag`` as a key, if no method and no other trainer knows it."""
    from trainer.config.aliases import ALIASES
    from trainer.config.keys import check_somewhere_known
    from trainer.errors import ConfigError

    key = flag.removeprefix("--").replace("-", "_")
    try:
        if key not in ALIASES:
            check_somewhere_known(key)
    except ConfigError as error:
        return str(error)
    return ""
