"""Count what XLA compiles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_counts: list[int] = [0]


def _listen(event: str, duration: float, **_: object) -> None:
    if event == _EVENT:
        _counts[0] += 1


jax.monitoring.register_event_duration_secs_listener(_listen)


class Compilations:
    """How many XLA compilations happened in the block."""

    count = 0


@contextlib.contextmanager
def compilations() -> Iterator[Compilations]:
    found, before = Compilations(), _counts[0]
    yield found
    found.count = _counts[0] - before
