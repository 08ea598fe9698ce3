"""How a step runs: devices, processes, precision, batches, checkpoints, the training loop."""
