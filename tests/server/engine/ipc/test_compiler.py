"""The engine's imports without torch's compiler, and the compiler for who asks for it after all."""

from __future__ import annotations

import subprocess
import sys

ALONE = """
import sys
from server.engine.ipc.compiler import leave_out_compiler

leave_out_compiler()
import torch
import bitsandbytes
import server.engine.engine
from transformers import LlamaForCausalLM

heavy = ("torch._dynamo.convert_frame", "torch._inductor", "torch.distributed.tensor")
print(*(name for name in heavy if name in sys.modules))

@torch.compile(dynamic=True)
def twice(x):
    return 2 * x

print(twice(3))
print(torch._dynamo.config.cache_size_limit > 0, torch._dynamo.optimize.__module__)
print(*(name for name in heavy if name in sys.modules))
"""


def test_the_compiler_is_there_when_it_is_used_and_not_before() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "",
        "6",
        "True torch._dynamo.eval_frame",
        "torch._dynamo.convert_frame torch._inductor torch.distributed.tensor",
    ]
