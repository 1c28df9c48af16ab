"""Where the server of the examples is: HOTSWAP_URL, HOTSWAP_API_KEY and HOTSWAP_MODEL in the environment."""

from __future__ import annotations

import json
import os
import urllib.request

URL = os.environ.get("HOTSWAP_URL", "http://127.0.0.1:8000").rstrip("/")
API_KEY = os.environ.get("HOTSWAP_API_KEY", "none")


def default_model() -> str:
    """HOTSWAP_MODEL, or the base that is served: the first of the list."""
    if named := os.environ.get("HOTSWAP_MODEL"):
        return named
    request = urllib.request.Request(f"{URL}/v1/models", headers={"Authorization": f"Bearer {API_KEY}"})
    with urllib.request.urlopen(request) as response:
        return str(json.load(response)["data"][0]["id"])


MODEL = default_model()
