"""Environments: made, vectorized, checked, and their spaces as arrays."""
