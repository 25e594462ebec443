"""Numbers of things among the settings of algorithms."""

from __future__ import annotations

import operator
from typing import Any

from ppl.errors import ArgumentError, message


def count(operation: str, name: str, value: Any, least: int = 1, example: int = 100) -> int:
    """Give a number of things, or raise `ArgumentError` with an example of one."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ArgumentError(
            message(
                f"{operation} got {name}={value!r}",
                needs="a positive integer" if least == 1 else f"an integer of at least {least}",
                fix=f"{name}={max(least, example)}",
            )
        )
    return number
