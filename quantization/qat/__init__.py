"""Quantization-aware training: weights and the steps of all grids are learned (needs torch)."""
