"""The content of compaction items: a summary that the model wrote, opaque to clients.

It is nobody's secret, who has the item has the conversation: the mark tells it from what other servers encrypted.
"""

from __future__ import annotations

import base64
import binascii

_MARK = "hotswap.1."
_INTRODUCTION = "Summary of the conversation before this point:\n"


def encode_summary(text: str) -> str:
    """``encrypted_content`` that says ``text``."""
    return _MARK + base64.urlsafe_b64encode(text.encode("utf-8", "replace")).decode()


def summary_message(content: str) -> str:
    """What the model is told of ``content``. Raises ValueError for what this server did not write."""
    if not content.startswith(_MARK):
        raise ValueError("this server cannot read what another one has compacted; send the items themselves")
    try:
        text = base64.b64decode(content.removeprefix(_MARK), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ValueError("is cut or changed; send it as POST /v1/responses/compact gave it") from error
    return _INTRODUCTION + text
