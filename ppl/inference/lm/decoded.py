"""How many tokens each language model has read, counted on the host while programs run."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

_counts: dict[int, int] = {}
_serials = itertools.count(1)


def serial() -> Any:
    """Give a new model its number, by which its tokens are counted.

    It is an array, not a part of the model's structure: models that differ in it share compiled
    code.
    """
    return np.int32(next(_serials))


def record(number: Int[Array, ""], tokens: Int[Array, "*text"]) -> None:
    """Count tokens whenever the program that this is traced into comes here.

    Args:
        number: the model's.
        tokens: how many, of every text.
    """
    jax.debug.callback(_add, number, tokens.sum())


def decoded(number: Any) -> int:
    """Say how many tokens were counted for a model, once what runs now is done.

    Args:
        number: the model's.
    """
    jax.effects_barrier()
    return _counts.get(int(number), 0)


def reset(number: Any) -> None:
    """Begin to count anew.

    Args:
        number: the model's.
    """
    jax.effects_barrier()
    _counts[int(number)] = 0


def _add(number: Any, tokens: Any) -> None:
    _counts[int(number)] = _counts.get(int(number), 0) + int(tokens)
