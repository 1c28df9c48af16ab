"""What the trainer's commands share: errors to one plain line, and quiet libraries."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable


def guarded(work: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run ``work``; one of our errors becomes one line on stderr and exit code 1."""
    from adapters.errors import AdapterError, BaseModelError
    from trainer.distributed.worker import leave_error
    from trainer.errors import TrainerError

    try:
        return work(args)
    except (TrainerError, AdapterError, BaseModelError) as error:
        line = " ".join(str(error).split())
        if not leave_error(line):
            print(f"hotswap: {line}", file=sys.stderr)
        return 1


def silence_libraries() -> None:
    """Their bars and hints would mix with ours; errors still come through."""
    import transformers

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
