"""A base model on disk and in memory: one rule each for finding, importing, quantizing and describing it."""
