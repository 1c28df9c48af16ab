from __future__ import annotations

from pathlib import Path

import pytest

from hotswap.demo.commands import run_to_end
from hotswap.errors import DemoError


async def test_a_command_that_works_leaves_its_output_in_the_log(tmp_path: Path) -> None:
    await run_to_end(["--version"], tmp_path / "log")
    assert (tmp_path / "log").read_text().startswith("hotswap ")


async def test_a_command_that_fails_is_told_in_its_own_last_words(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=r"hotswap trian failed: hotswap: 'trian' is not a command.*log is"):
        await run_to_end(["trian"], tmp_path / "log")
