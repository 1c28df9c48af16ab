"""Reading the tokenizer of a base, for server and trainer alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bases.errors import BaseModelError, UntrustedCodeError
from bases.tokenizer import find_tokenizer, load_tokenizer
from tests.factory import CHAT_TEMPLATE, make_tokenizer
from tests.server.model.families.own_code import make_own_code_base


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


def test_one_that_comes_as_code_is_run_only_where_it_is_trusted(tmp_path: Path) -> None:
    make_own_code_base(tmp_path, "yuan", own_tokenizer=True)
    with pytest.raises(UntrustedCodeError, match=r"comes as code beside it.*--trust-remote-code"):
        load_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path, trust_remote_code=True)
    assert tokenizer("ab").input_ids[0] == tokenizer.bos_token_id  # as its code says
    assert tokenizer.decode(tokenizer("ab c", add_special_tokens=False).input_ids) == "ab c"  # as its file says
