"""The training loop and its parts: steps, optimizers, checkpoints, the log."""
