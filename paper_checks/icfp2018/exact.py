"""Exact evidence and posterior means of the three models, by NumPy in double precision."""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy.signal import convolve
from scipy.special import betaln, binom, expit, gammaln

from paper_checks.icfp2018.models import (
    DOCUMENTS,
    EMISSIONS,
    TOPICS,
    TRANSITIONS,
    VOCABULARY,
    data,
)


class Exact(NamedTuple):
    """The log evidence, and the posterior mean of what the program returns."""

    log_evidence: float
    mean: np.ndarray


def regression(x: np.ndarray, label: np.ndarray) -> Exact:
    """Integrate by the trapezoid rule: slope, intercept, log noise, and within these the logit.

    The slope's steps are short, as it is multiplied by 8 in the end.
    """
    steps = 1 / 8, 1 / 2, 1 / 4
    ends = (-6, 6.1), (-6, 6.1), (-17, 4)
    grids = [np.arange(*ab, h) for ab, h in zip(ends, steps, strict=True)]
    slope, intercept, u = np.meshgrid(*grids, indexing="ij")
    noise = np.exp(u)
    z = np.arange(-7, 7.1, 0.2)
    normal = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * 0.2

    def chance(x: float) -> np.ndarray:
        """Probability of a label of one."""
        total = np.zeros_like(noise)
        for point, weight in zip(z, normal, strict=True):
            total += weight * expit(slope * x + intercept + noise * point)
        return total

    prior = -(slope**2 + intercept**2) / 2 - math.log(2 * math.pi) - noise + u
    weights = np.exp(prior) * math.prod(steps)
    for xi, one in zip(x, label, strict=True):
        weights *= chance(xi) if one else 1 - chance(xi)
    mean = (weights * chance(8.0)).sum() / weights.sum()
    return Exact(math.log(weights.sum()), np.array(mean))


def markov(y: np.ndarray) -> Exact:
    """Run forward, from each start state."""
    transitions, emissions = np.array(TRANSITIONS), np.array(EMISSIONS)
    alpha, log_scale = np.eye(3) / 3, 0.0  # rows: start, columns: present state
    for value in y:
        likelihood = np.exp(-((value - emissions) ** 2) / 2) / math.sqrt(2 * math.pi)
        alpha = alpha @ transitions * likelihood
        log_scale += math.log(alpha.sum())
        alpha /= alpha.sum()
    return Exact(log_scale, np.array([alpha[0].sum(), alpha[:, 0].sum()]))


def allocation(documents: np.ndarray) -> Exact:
    """Sum over the numbers of words of each kind that are about topic 0; the rest integrates out.

    A further word 0 is as likely as the evidence with it is larger than that without.
    """
    counts = np.stack([(documents == v).sum(1) for v in range(VOCABULARY)], 1)
    log_evidence, first = _allocation(counts), np.eye(VOCABULARY, dtype=int)[0]
    more = [
        math.exp(_allocation(counts + first * (np.arange(DOCUMENTS) == d)[:, None]) - log_evidence)
        for d in range(DOCUMENTS)
    ]
    return Exact(log_evidence, np.array(np.mean(more)))


def _allocation(counts: np.ndarray) -> float:
    assert TOPICS == 2
    total = np.ones((1,) * VOCABULARY)
    for row in counts:
        ways = np.zeros(row + 1)
        for a in itertools.product(*(range(c + 1) for c in row)):
            about = sum(a)
            log_topics = betaln(1 + about, 1 + row.sum() - about)
            ways[a] = np.prod(binom(row, a)) * math.exp(log_topics)
        total = convolve(total, ways, method="direct")
    words = _words(total.shape)
    return math.log((total * words * np.flip(words)).sum())


def _words(shape: tuple[int, ...]) -> np.ndarray:
    """Give the probability of words by their counts, their law being uniform on the simplex."""
    n = np.indices(shape)
    return np.exp(gammaln(VOCABULARY) + gammaln(1 + n).sum(0) - gammaln(VOCABULARY + n.sum(0)))


@functools.cache
def exact(name: str, length: int) -> Exact:
    """Give the exact answers for LR, HMM or LDA on data of a length (of each document)."""
    return {"LR": regression, "HMM": markov, "LDA": allocation}[name](*data(name, length))
