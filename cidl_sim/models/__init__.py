"""The networks in PyTorch, block by block."""
