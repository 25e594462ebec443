"""How long do the runs take, and how does that grow?"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import numpy as np

import ppl
from paper_checks.icfp2018.methods import METHODS
from paper_checks.icfp2018.models import DOCUMENTS, program

#: Moves of all steps cost the square of their number; beyond this the check would take too long.
MOST_STEPS = 1000
#: The sizes at which the paper varies the number of samples (LDA: 5 documents, 50 words in all).
SAMPLES_AT = {"LR": 50, "HMM": 20, "LDA": 10}


class Times(NamedTuple):
    """Seconds of one method on one model by size: warm, and for the first run on top of that."""

    model: str
    method: str
    sizes: list[int]
    warm: list[float]
    compiling: list[float]


def seconds(
    methods: Sequence[ppl.Program], rounds: int = 20, enough: float = 1.5
) -> tuple[list[float], list[float]]:
    """Give the shortest time of some runs, and how much longer the first one took.

    The methods run by turns, so that a busy machine slows all of them.
    """

    def once(method: ppl.Program, key: int) -> float:
        begun = time.perf_counter()
        jax.block_until_ready(ppl.run(method, key))
        return time.perf_counter() - begun

    first = np.array([once(method, 0) for method in methods])
    found: list[list[float]] = []
    while len(found) < rounds and sum(map(sum, found)) < enough:
        found.append([once(method, 1 + len(found)) for method in methods])
    warm = np.min(found, axis=0)
    return warm.tolist(), (first - warm).tolist()


def _times(
    model: str, method: str, sizes: Sequence[int], at: Callable[[int], ppl.Program]
) -> Times:
    # An operating system maps only so many parts of memory, and each compiled function is some.
    jax.clear_caches()
    gc.collect()
    warm, compiling = seconds([at(size) for size in sizes])
    return Times(model, method, list(sizes), warm, compiling)


def by_length(models: Iterable[str], lengths: Sequence[int]) -> Iterable[Times]:
    """Time all methods; documents of LDA have half of a length each."""
    for model in models:
        for method in METHODS:
            sizes = [n // 2 for n in lengths] if model == "LDA" else list(lengths)
            steps = DOCUMENTS if model == "LDA" else 1
            if not method.linear:
                sizes = [n for n in sizes if n * steps <= MOST_STEPS]
            yield _times(
                model, method.name, sizes, lambda n, m=model, at=method.at: at(program(m, n))
            )


def by_samples(models: Iterable[str], samples: Sequence[int]) -> Iterable[Times]:
    """Time all methods of linear cost with more and more samples."""
    for model in models:
        source = program(model, SAMPLES_AT[model])
        for method in METHODS:
            if method.linear:
                yield _times(
                    model,
                    method.family,
                    samples,
                    lambda n, p=source, spend=method.with_samples: spend(p, n),
                )


def exponent(sizes: Sequence[int], warm: Sequence[float]) -> tuple[float, float]:
    """Fit log time over log size: the slope and its standard error (NaN with two sizes)."""
    x, y = np.log(sizes), np.log(warm)
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    rest = y - y.mean() - slope * x
    free = len(x) - 2
    return slope, math.sqrt(float(rest @ rest) / free / float(x @ x)) if free else math.nan
