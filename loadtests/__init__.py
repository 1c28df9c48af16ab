"""Load on any OpenAI-compatible server, over HTTP alone: imports nothing of hotswap."""
