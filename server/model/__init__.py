"""The resident base model and the adapters that ride on it: loading, KV cache, attention, execution."""
