"""``hotswap chat``: talk to any OpenAI-compatible server in the terminal, to one model or to several side by side."""
