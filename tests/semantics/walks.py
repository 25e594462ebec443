"""A slow judge of finite models: plain Python, one run at a time.

A reference `ref(w)` is a model written with `if` and `for`. It draws with `w.draw(address, masses)`
and scores with `w.score(log_weight)`. `runs(ref)` goes through every run of positive weight.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Run(NamedTuple):
    """A value, its weight, and the choices that led there: (address, value, probability)."""

    value: Any
    weight: float
    choices: list[tuple[str, Any, float]]


class _DeadError(Exception):
    pass


class Walk:
    """One run: the first choices are told, the others are the first that are possible."""

    def __init__(self, told: tuple[Any, ...]):
        self.told, self.choices, self.log_weight = told, [], 0.0
        self.others: list[tuple[Any, ...]] = []

    def draw(self, address: str, masses: Any) -> Any:
        """Draw from masses, a list over 0, 1, ... or a dict; for a coin give one number."""
        if isinstance(masses, float):
            masses = {0: 1 - masses, 1: masses}
        if not isinstance(masses, Mapping):
            masses = dict(enumerate(masses))
        possible = [v for v, p in masses.items() if p > 0]
        assert abs(math.fsum(masses.values()) - 1) < 1e-12
        n = len(self.choices)
        if n < len(self.told):
            value = self.told[n]
        else:
            past = tuple(v for _, v, _ in self.choices)
            self.others += [(*past, v) for v in possible[1:]]
            value = possible[0]
        p = float(masses[value])
        self.choices.append((address, value, p))
        self.log_weight += math.log(p)
        return value

    def score(self, log_weight: float) -> None:
        self.log_weight += float(log_weight)
        if self.log_weight == -math.inf:
            raise _DeadError


def runs(ref: Callable[[Walk], Any]) -> list[Run]:
    """Go through all runs of positive weight."""
    found, waiting = [], [()]
    while waiting:
        walk = Walk(waiting.pop())
        try:
            value = ref(walk)
            found.append(Run(value, math.exp(walk.log_weight), walk.choices))
        except _DeadError:
            pass
        waiting += walk.others
    return found


def key(value: Any) -> tuple[Any, ...]:
    """Make a value hashable; floats to nine digits."""
    rounded = [np.round(np.asarray(x, float), 9) for x in jax.tree.leaves(value)]
    return tuple(_nested(x.tolist()) for x in rounded)


def _nested(x: Any) -> Any:
    return tuple(map(_nested, x)) if isinstance(x, list) else x + 0.0


def masses(ref: Callable[[Walk], Any]) -> dict[tuple[Any, ...], float]:
    """Add the weights of the runs up by value."""
    parts: dict[Any, list[float]] = defaultdict(list)
    for run in runs(ref):
        parts[key(run.value)].append(run.weight)
    return {k: math.fsum(ws) for k, ws in parts.items()}


def check(measure: Any, ref: Callable[[Walk], Any], tolerance: float = 1e-10) -> None:
    """Assert that a measure has the points of a reference, no other ones, and their masses."""
    wanted = masses(ref)
    found = {key(value): mass for value, mass in measure}
    assert len(found) == len(measure)
    assert found.keys() == wanted.keys()
    worst = max((abs(found[k] - wanted[k]) for k in wanted), default=0.0)
    assert worst < tolerance
