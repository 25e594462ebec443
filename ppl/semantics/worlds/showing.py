"""How a point of a finite measure reads."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ppl._types import PyTree


def number(x: Any) -> str:
    """Print a number or array briefly."""
    return np.array2string(np.asarray(x), precision=6, threshold=8, edgeitems=3, separator=", ")


def show(value: PyTree) -> str:
    """Print a point on one line."""
    paths = jax.tree_util.tree_flatten_with_path(value)[0]
    parts = [(name(p), number(x)) for p, x in paths]
    return ", ".join(f"{where} = {x}" if where else x for where, x in parts) or "()"


def name(path: Any) -> str:
    """Name a part of a value as short as can be: `a`, `[0]`, `position.x`."""
    if len(path) == 1 and isinstance(path[0], jax.tree_util.SequenceKey):
        return str(jax.tree_util.keystr(path))
    return jax.tree_util.keystr(path, simple=True, separator=".")
