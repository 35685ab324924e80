"""Environments: construction, vectorization, API checks, and codecs of their spaces."""
