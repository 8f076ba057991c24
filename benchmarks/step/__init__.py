"""A training step on the CPU against the same step in PyTorch."""
