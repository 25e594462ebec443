"""Many independent chains that start from exact draws of the posterior, and must remain such."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import stats

import ppl
import ppl.distributions as dist

#: Of every Kolmogorov-Smirnov test below, for which one draw of each chain is one of a sample.
FALSE_ALARM = 1e-6


@ppl.model
def moved(kernel, program, start, num_moves):
    """Move each of many states, along the leading axes of `start`; what does not exist is zero."""

    def one(choices):
        trace = ppl.trace_of(program, choices)
        return lax.scan(lambda t, _: (kernel(t), None), trace, length=num_moves)[0].canonical[0]

    return jax.vmap(one)(start)


def move(kernel, program, start, num_moves=5, key=0):
    start = {a: jnp.asarray(x) for a, x in start.items()}
    end = ppl.run(moved(kernel, program, start, num_moves), key)
    return {a: np.asarray(x) for a, x in end.items()}


def agrees(draws, law):
    """Whether draws come from a law: one-sample Kolmogorov-Smirnov test at level 1e-6."""
    return stats.kstest(np.asarray(draws, np.float64), law.cdf).pvalue > FALSE_ALARM


@ppl.model
def lane():
    """A branch under `vmap`: of what is not taken, values are carried along."""

    def one(_):
        flag = ppl.sample("flag", dist.Bernoulli(0.3))
        value = lax.cond(
            flag == 1,
            lambda: ppl.sample("a", dist.Categorical(jnp.array([0.2, 0.5, 0.3]))),
            lambda: ppl.sample("b", dist.Bernoulli(0.6)),
        )
        ppl.sample("y", dist.Bernoulli(jnp.array([0.1, 0.8, 0.4])[value]), obs=1)
        return value

    return jax.vmap(one)(jnp.arange(1))


# --- A Gaussian posterior of three dimensions ---------------------------------------------------


@ppl.model
def gaussian(y):
    """Correlated normal latents, one of them in front of the others, all of mean not zero."""
    a = ppl.sample("a", dist.Normal(2.0, 1.0))
    with ppl.plate("n", 2):
        x = ppl.sample("x", dist.Normal(a, 0.5))
    ppl.sample("y", dist.Normal(x[0] + x[1], 0.7), obs=y)


DATUM = 1.5


@dataclasses.dataclass(frozen=True)
class Answer:
    """A normal law, and standardised functions of draws from it."""

    mean: np.ndarray
    covariance: np.ndarray

    def draw(self, num, seed=0):
        return np.random.default_rng(seed).multivariate_normal(self.mean, self.covariance, num)

    def agrees(self, draws):
        """Each coordinate, and each of the directions in which they are independent."""
        root = np.linalg.cholesky(self.covariance)
        white = np.linalg.solve(root, (draws - self.mean).T)
        single = (draws - self.mean).T / np.sqrt(np.diag(self.covariance))[:, None]
        return all(agrees(z, stats.norm) for z in (*white, *single))


def posterior(mean, covariance, rows, y, sd):
    """Of a normal vector given rows @ vector + noise = y."""
    rows = np.atleast_2d(rows)
    gain = covariance @ rows.T @ np.linalg.inv(rows @ covariance @ rows.T + sd**2 * np.eye(len(y)))
    return Answer(mean + gain @ (y - rows @ mean), covariance - gain @ rows @ covariance)


def gaussian_answer(y=DATUM):
    """Of (a, x0, x1)."""
    covariance = np.ones((3, 3)) + np.diag([0.0, 0.25, 0.25])
    return posterior(np.full(3, 2.0), covariance, [0.0, 1.0, 1.0], np.array([y]), 0.7)


def stays_gaussian(kernel, num=2000, num_moves=5):
    """Whether a kernel keeps the posterior of `gaussian`; and how many of the states it moved."""
    answer = gaussian_answer()
    start = answer.draw(num)
    end = move(kernel, gaussian(DATUM), {"a": start[:, 0], "x": start[:, 1:]}, num_moves)
    changed = np.mean(end["a"] != np.float32(start[:, 0]))
    return answer.agrees(np.column_stack([end["a"], end["x"]])), changed


# --- A bounded site -----------------------------------------------------------------------------


@ppl.model
def waiting(y):
    """An exponential rate and one datum: the posterior is Gamma(2, 1 + y)."""
    rate = ppl.sample("rate", dist.Exponential(1.0))
    ppl.sample("y", dist.Exponential(rate), obs=y)


def stays_gamma(kernel, num=4000, num_moves=3):
    """Whether a kernel keeps the posterior of `waiting`, which lives on the positive numbers."""
    law = stats.gamma(2, scale=1 / (1 + DATUM))
    start = {"rate": law.rvs(num, random_state=1).astype(np.float32)}
    return agrees(move(kernel, waiting(DATUM), start, num_moves)["rate"], law)


# --- No density at all --------------------------------------------------------------------------


@ppl.model
def dead():
    x = ppl.sample("x", dist.Uniform(0.0, 1.0))
    ppl.sample("y", dist.Uniform(0.0, x), obs=2.0)


def stays_dead(kernel):
    """Whether a move from an impossible state ends there, and without a NaN."""
    moved = ppl.run(kernel(ppl.trace_of(dead(), {"x": 0.5})), 0)
    return float(moved.log_density) == -np.inf and float(moved.choices["x"]) == 0.5
