"""Python functions that run while XLA does, and how their errors come back by name."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

_raised: list[BaseException] = []
_used: list[bool] = []


def on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """Remember what a callback raises: XLA hands on no more than its text.

    Args:
        function: a callback.
    """
    _used[:] = [True]

    @functools.wraps(function)
    def remembered(*args: Any) -> Any:
        try:
            return function(*args)
        except BaseException as error:
            _raised.append(error)
            raise

    return remembered


@contextlib.contextmanager
def named_errors() -> Iterator[Callable[[Any], Any]]:
    """Raise what a callback raised in the block. Gives a function that waits for arrays."""
    _raised.clear()
    try:
        yield jax.block_until_ready if _used else lambda tree: tree
    except Exception:
        if _raised:
            error = _raised[0]
            _raised.clear()
            raise error from None
        raise
