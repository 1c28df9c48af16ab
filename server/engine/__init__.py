"""Requests in, tokens out: scheduling, batching, sampling, and the process that owns the model."""
