"""Types of numbers that numpy learns from `ml_dtypes`: bfloat16, the 8-bit floats, int4."""

from __future__ import annotations

from typing import Any

import numpy as np

_REGISTERED = 2  # the value of `dtype.isbuiltin` for a type that another package added


def is_extended(dtype: np.dtype[Any]) -> bool:
    """Say whether numpy itself, and so every file format of numpy's, lacks this type."""
    return dtype.isbuiltin == _REGISTERED


def extended_dtype(name: str) -> np.dtype[Any] | None:
    """Find an extended type by its name."""
    import ml_dtypes

    scalar = getattr(ml_dtypes, name, None)
    return None if scalar is None else np.dtype(scalar)


def widened(x: np.ndarray) -> np.ndarray:
    """Convert an extended type to float32, which holds all of its values; keep the others."""
    return x.astype(np.float32) if is_extended(x.dtype) else x
