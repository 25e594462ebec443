"""Transformers: inference algorithms as programs."""
