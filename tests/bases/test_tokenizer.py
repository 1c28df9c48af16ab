"""Reading the tokenizer of a base, for server and trainer alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bases.errors import BaseModelError
from bases.tokenizer import find_tokenizer, load_tokenizer
from tests.factory import CHAT_TEMPLATE, make_tokenizer


def test_a_saved_tokenizer_is_read_whole(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
    assert (tokenizer.chat_template, tokenizer.eos_token) == (CHAT_TEMPLATE, "<|im_end|>")


def test_one_of_the_generic_class_is_read_without_torch(tiny_base: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from bases.end_tokens import end_token_ids; "
        "from bases.tokenizer import load_tokenizer; path = Path(sys.argv[1]); "
        "assert end_token_ids(path, load_tokenizer(path)) == (258,); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tiny_base)], check=False).returncode == 0


@pytest.mark.parametrize("content", [None, "{", '{"version": "1.0"}'])
def test_what_cannot_be_read_is_said_so(tiny_base: Path, tmp_path: Path, content: str | None) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes((tiny_base / "tokenizer_config.json").read_bytes())
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BaseModelError, match=f"the tokenizer in {tmp_path} cannot be read"):
        load_tokenizer(tmp_path)


def test_a_base_may_come_without_one(tiny_base: Path, tmp_path: Path) -> None:
    assert find_tokenizer(tmp_path) is None
    assert find_tokenizer(tiny_base).eos_token_id == 258
