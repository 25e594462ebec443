"""Resampling schemes once more, in exact fractions and from their definitions."""

import collections
import functools
import itertools
import math
from fractions import Fraction

import numpy as np


def log_of(weights):
    return np.array([math.log(w) if w else -np.inf for w in weights])


def normalised(weights):
    weights = [1] * len(weights) if not any(weights) else weights
    return [Fraction(w, sum(weights)) for w in weights]


def shares(weights, num):
    """Expected numbers of offspring, exactly."""
    return [num * w for w in normalised(weights)]


def independently(tables):
    """The law of sorted vectors whose elements are drawn from one table each."""
    law = collections.Counter()
    for picks in itertools.product(*[range(len(t)) for t in tables]):
        law[tuple(sorted(picks))] += math.prod(t[i] for t, i in zip(tables, picks, strict=True))
    return law


def particle_at(point, expected):
    """The particle in whose interval of the cumulated expected offspring a point lies."""
    return next(i for i, end in enumerate(itertools.accumulate(expected)) if point < end)


def multinomial(expected, num):
    return independently([[x / num for x in expected] for _ in range(num)])


def stratified(expected, num):
    cuts = sorted({*range(num + 1), *itertools.accumulate(expected)})
    tables = [[Fraction(0)] * len(expected) for _ in range(num)]
    for low, high in itertools.pairwise(cuts):
        tables[math.floor(low)][particle_at((low + high) / 2, expected)] += high - low
    return independently(tables)


def systematic(expected, num):
    cuts = sorted({Fraction(0), Fraction(1), *(end % 1 for end in itertools.accumulate(expected))})
    law = collections.Counter()
    for low, high in itertools.pairwise(cuts):
        points = [i + (low + high) / 2 for i in range(num)]
        law[tuple(particle_at(p, expected) for p in points)] += high - low
    return law


def residual(rest):
    """Copies for whole parts, and another scheme for what is left."""

    def law(expected, num):
        copies = [math.floor(x) for x in expected]
        certain = [i for i, k in enumerate(copies) for _ in range(k)]
        left = num - len(certain)
        drawn = rest([x - k for x, k in zip(expected, copies, strict=True)], left)
        return {tuple(sorted([*certain, *more])): p for more, p in drawn.items()}

    return law


def ssp(expected, num):
    """Walk through all outcomes of the pairwise roundings."""
    law = collections.Counter()

    def walk(j, active, fractions, counts, p):
        if j == len(expected):
            assert fractions[active] == 0  # the total is whole
            law[tuple(i for i, k in enumerate(counts) for _ in range(k))] += p
            return
        a, b = fractions[active], fractions[j]
        step = functools.partial(settle, j, active, fractions, counts)
        if a + b == 0:
            step(j, 0, Fraction(0), p)
        elif a + b < 1:
            step(j, 0, a + b, p * a / (a + b))
            step(active, 0, a + b, p * b / (a + b))
        else:
            step(active, 1, a + b - 1, p * (1 - b) / (2 - a - b))
            step(j, 1, a + b - 1, p * (1 - a) / (2 - a - b))

    def settle(j, active, fractions, counts, settled, up, left, p):
        if p:
            other = active if settled == j else j
            fractions = [left if i == other else f for i, f in enumerate(fractions)]
            counts = [k + up if i == settled else k for i, k in enumerate(counts)]
            walk(j + 1, other, fractions, counts, p)

    walk(1, 0, [x % 1 for x in expected], [math.floor(x) for x in expected], Fraction(1))
    return law


READINGS = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual_multinomial": residual(multinomial),
    "residual_systematic": residual(systematic),
    "ssp": ssp,
}
