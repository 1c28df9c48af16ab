"""Kinds that stand before the prompt: keys and values, or embedding rows."""
