"""Equations, losses, normalization and CUDA graphs."""
