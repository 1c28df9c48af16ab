"""The training loop: steps, loss, checkpoints, records and progress."""
