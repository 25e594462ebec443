"""Are the nine runs right? Averages over independent runs against the exact answers.

Populations: Z and Z times the weighted mean are unbiased, whatever the number of particles. So with
the exact evidence and mean m, the means of Z / evidence - 1 and of Z (weighted mean - m) are zero.
Chains: a first run drawn from the prior has a weight, and steps that leave the posterior invariant
leave weighted averages unbiased, however few they are. That chains also forget where they started,
long ones show on the HMM. (On LR that takes too long: where the noise is small all its sites hang
together, and to redraw one is to be rejected. After 8000 steps the mean is still 0.02 too low.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ppl
from paper_checks.icfp2018.exact import exact
from paper_checks.icfp2018.methods import from_prior, metropolis, resample_move, smc
from paper_checks.icfp2018.models import MODELS, program

#: Observations (of each document) at which the exact answers are compared.
LENGTHS = {"LR": 10, "HMM": 10, "LDA": 4}
#: Of 25 normal z-scores one exceeds this with a probability of one in a million.
BOUND = 5.5


class Check(NamedTuple):
    """A method's z-scores by model and number of runs, and those of a mistaken one.

    On the HMM the mistake has to be seen. (In the other two models nothing depends on what the last
    step chose, so that moving it has no effect, right or wrong.)
    """

    name: str
    scores: Callable[[str, int], np.ndarray]
    mistake: str
    mistaken: Callable[[str, int], np.ndarray]
    models: tuple[str, ...] = tuple(MODELS)


def _z(x: Any, truth: Any) -> np.ndarray:
    """Compare means over independent runs (first axis) with the truth, in standard errors."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    error = x.std(0, ddof=1) / math.sqrt(len(x))
    return (x.mean(0) - np.ravel(truth)) / error


def _runs(method: ppl.Program, read: Callable[[Any], Any], count: int) -> Any:
    keys = jax.random.split(jax.random.key(2018), count)
    return jax.jit(jax.vmap(lambda key: read(ppl.run(method, key))))(keys)


def weighted_chains(kernel: Any = None) -> Callable[..., np.ndarray]:
    """Compare averages along the paper's 100 steps, times the weight of the first run."""

    def scores(name: str, count: int) -> np.ndarray:
        truth = exact(name, LENGTHS[name])
        method = metropolis(program(name, LENGTHS[name]), 100, kernel)
        log_weights, means = _runs(method, lambda x: (x[0], jnp.mean(x[1], 0)), 4 * count)
        ratio = np.exp(np.asarray(log_weights, np.float64) - truth.log_evidence)[:, None]
        return _z(ratio * (np.reshape(means, (4 * count, -1)) - truth.mean), 0.0)

    return scores


def long_chains(kernel: Any = None) -> Callable[..., np.ndarray]:
    """Compare averages along chains from the prior, without their first quarter."""

    def scores(name: str, count: int) -> np.ndarray:
        method = metropolis(program(name, LENGTHS[name]), 4000, kernel)
        means = _runs(method, lambda x: jnp.mean(x[1][1000:], 0), count // 16)
        return _z(means, exact(name, LENGTHS[name]).mean)

    return scores


def populations(
    method: Callable[[ppl.Program], ppl.Program], weigh: bool = True
) -> Callable[..., np.ndarray]:
    """Compare the evidence, and the evidence times weighted means."""

    def read(population: ppl.Population) -> Any:
        weights = population.weights if weigh else 1 / population.num_particles
        values = population.values.reshape(population.num_particles, -1)
        mean = jnp.sum(jnp.reshape(weights, (-1, 1)) * values, 0)
        return population.log_evidence, mean

    def scores(name: str, count: int) -> np.ndarray:
        truth = exact(name, LENGTHS[name])
        log_evidence, means = _runs(method(program(name, LENGTHS[name])), read, count)
        ratio = np.exp(np.asarray(log_evidence, np.float64) - truth.log_evidence)[:, None]
        return _z(np.hstack([ratio - 1, ratio * (means - truth.mean)]), 0.0)

    return scores


def checks() -> list[Check]:
    """List the methods."""
    moves = "moves forget the data"
    return [
        Check("MH100", weighted_chains(), moves, weighted_chains(from_prior)),
        Check("MH4000, for its limit", long_chains(), moves, long_chains(from_prior), ("HMM",)),
        Check(
            "SMC100",
            populations(lambda p: smc(p, 100)),
            "the last weights are forgotten",
            populations(lambda p: smc(p, 100), weigh=False),
        ),
        *(
            Check(
                f"RMSMC10-1, {'last step' if last else 'all steps'}",
                populations(lambda p, last=last: resample_move(p, 10, last=last)),
                moves,
                populations(
                    lambda p, last=last: resample_move(p, 10, last=last, kernel=from_prior)
                ),
            )
            for last in (True, False)
        ),
    ]
