"""Fine-tuning jobs: files in, a served adapter out. The trainer runs in a process of its own, which gives way."""
