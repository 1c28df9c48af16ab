"""What the processes of ``tests.trainer.forked`` have imported before they begin."""

from importlib import import_module

from trainer.commands.common import import_bitsandbytes

import_bitsandbytes()
for name in ("trainer.commands.train", "trainer.run"):
    import_module(name)
