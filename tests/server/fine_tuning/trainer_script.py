"""Stands in the place of ``hotswap train`` where its supervision is tested: the same files, signals and exit codes.

The configuration's ``common`` says, as ``training.optimizer``, what it is to do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

STEP_SECONDS = 0.05
LOSSES = {"worse": {20: 3.0, 40: 3.0}, "late": {10: 2.5}}


def main() -> int:
    config = json.loads(Path(sys.argv[1]).read_text())
    output = Path(config["output"])
    output.mkdir(exist_ok=True)
    what = config["method"]["what"]
    (output.parent / "flags").write_text(" ".join(sys.argv[2:]))
    (output.parent / "nice").write_text(str(os.nice(0)))
    if (group := Path("/proc/self/autogroup")).exists():
        (output.parent / "group").write_text(group.read_text())
    (output.parent / "pid").write_text(str(os.getpid()))
    (output / "config.yaml").write_text("{}")
    stopped: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        stopped.append(number)

    signal.signal(signal.SIGTERM, stop)
    if what == "fail":
        print("hotswap: data.path: rows are wrong", file=sys.stderr)
        return 1
    if what == "memory":
        held = bytearray(300 * 2**20)
        held[::4096] = b"x" * len(held[::4096])
        time.sleep(60)
    if what == "disk":
        (output / "large").write_bytes(b"x" * 2**20)
        time.sleep(60)
    saved = sorted(int(path.name.partition("-")[2]) for path in output.glob("checkpoint-*"))
    begin = saved[-1] if "--resume" in sys.argv else 0
    metrics = output / "metrics.jsonl"
    kept = [line for line in metrics.read_text().splitlines() if json.loads(line)["step"] <= begin] if begin else []
    metrics.write_text("".join(line + "\n" for line in kept or [json.dumps({"step": 0, "eval_loss": 2.0})]))
    for step in range(begin + 1, 41):
        with metrics.open("a") as file:
            file.write(json.dumps({"step": step, "loss": 1 / step, "tokens": 10}) + "\n")
            if step in (20, 40) or step in LOSSES.get(what, {}):
                file.write(json.dumps({"step": step, "eval_loss": LOSSES.get(what, {}).get(step, 20 / step)}) + "\n")
        time.sleep(STEP_SECONDS if what == "slow" else 0)
        if stopped:
            folder = output / f"checkpoint-{step}"
            folder.mkdir()
            (folder / "trainer_state.json").write_text("{}")
            return 128 + stopped[0]
    with metrics.open("a") as file:
        loss = LOSSES.get(what, {}).get(40, 0.5)
        file.write(json.dumps({"step": 40, "train_loss": 0.1, "validation_loss": loss, "train_seconds": 1}) + "\n")
    kept = [f"checkpoint-{step}/adapter" for step in (20, 40, *LOSSES.get(what, {}))]
    for name in ("adapter", *kept):
        (output / name).mkdir(parents=True, exist_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
