"""Small models with exact answers, and how the answers come about.

Every model takes its data as an argument, so that one structure serves many data sets.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

import ppl
import ppl.distributions as dist

LOG_2PI = math.log(2 * math.pi)


class Gaussian(NamedTuple):
    """A Gaussian posterior of one unknown, and the log evidence."""

    mean: float
    sd: float
    log_evidence: float


# --- Normal-normal ------------------------------------------------------------------------------
# mu ~ N(m, s^2), y_i ~ N(mu, t^2), i = 1..n. Precisions add: 1/v = 1/s^2 + n/t^2, and the mean is
# v (m/s^2 + sum y / t^2). Jointly y ~ N(m 1, t^2 I + s^2 11'), whose density is the evidence.

NORMAL_DATA = np.array([0.3, -0.8, 1.9, 0.6], np.float32)


@ppl.model
def normal_normal(y, prior_mean=1.0, prior_sd=2.0, sd=0.5):
    mu = ppl.sample("mu", dist.Normal(prior_mean, prior_sd))
    with ppl.plate("n", y.shape[0]):
        ppl.sample("y", dist.Normal(mu, sd), obs=y)
    return mu


def normal_normal_answer(y=NORMAL_DATA, prior_mean=1.0, prior_sd=2.0, sd=0.5) -> Gaussian:
    y = np.asarray(y, np.float64)
    variance = 1 / (1 / prior_sd**2 + len(y) / sd**2)
    mean = variance * (prior_mean / prior_sd**2 + y.sum() / sd**2)
    covariance = sd**2 * np.eye(len(y)) + prior_sd**2
    evidence = stats.multivariate_normal(np.full(len(y), prior_mean), covariance).logpdf(y)
    return Gaussian(mean, math.sqrt(variance), float(evidence))


# --- Flat prior ---------------------------------------------------------------------------------
# mu ~ Lebesgue, y_i ~ N(mu, t^2): the posterior is N(mean y, t^2 / n); the prior has no mass.


@ppl.model
def flat_normal(y, sd=0.5):
    mu = ppl.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    with ppl.plate("n", y.shape[0]):
        ppl.sample("y", dist.Normal(mu, sd), obs=y)
    return mu


# --- Beta-binomial ------------------------------------------------------------------------------
# p ~ Beta(a, b), k ~ Binomial(n, p): p | k ~ Beta(a + k, b + n - k), and
# P(k) = C(n, k) B(a + k, b + n - k) / B(a, b).


@ppl.model
def beta_binomial(k, n=10, a=2.0, b=3.0):
    p = ppl.sample("p", dist.Beta(a, b))
    ppl.sample("k", dist.Binomial(n, p), obs=k)
    return p


def beta_binomial_answer(k, n=10, a=2.0, b=3.0) -> Gaussian:
    posterior = stats.beta(a + k, b + n - k)
    evidence = (
        math.log(math.comb(n, int(k))) + special.betaln(a + k, b + n - k) - special.betaln(a, b)
    )
    return Gaussian(float(posterior.mean()), float(posterior.std()), float(evidence))


# --- Gamma-Poisson ------------------------------------------------------------------------------
# r ~ Gamma(a, rate b), k_i ~ Poisson(r): r | k ~ Gamma(a + sum k, b + n), and
# P(k) = b^a Gamma(a + S) / (Gamma(a) (b + n)^(a + S) prod k_i!).

COUNTS = np.array([2, 0, 5, 3, 1], np.int32)


@ppl.model
def gamma_poisson(k, a=3.0, b=2.0):
    rate = ppl.sample("rate", dist.Gamma(a, b))
    with ppl.plate("n", k.shape[0]):
        ppl.sample("k", dist.Poisson(rate), obs=k)
    return rate


def gamma_poisson_answer(k=COUNTS, a=3.0, b=2.0) -> Gaussian:
    total, n = int(np.sum(k)), len(k)
    posterior = stats.gamma(a + total, scale=1 / (b + n))
    evidence = (
        a * math.log(b)
        + math.lgamma(a + total)
        - math.lgamma(a)
        - (a + total) * math.log(b + n)
        - sum(math.lgamma(x + 1) for x in k)
    )
    return Gaussian(float(posterior.mean()), float(posterior.std()), evidence)


# --- Linear-Gaussian ----------------------------------------------------------------------------
# x_0 ~ N(0, 1), x_t ~ N(a x_{t-1}, q^2), y_t ~ N(x_t, r^2), in a scan. (x, y) is jointly Gaussian
# with x = L e, L[i, j] = a^(i - j) (e_0 unit, the others q): y ~ N(0, L D L' + r^2 I), and
# E[x | y] = Sxx Syy^-1 y, Var = Sxx - Sxx Syy^-1 Sxx.


@ppl.model
def linear_gaussian(y, a=0.8, q=0.6, r=0.4):
    def step(state, now):
        t, y = now
        mean = jnp.where(t == 0, 0.0, a * state)
        sd = jnp.where(t == 0, 1.0, q)
        x = ppl.sample("x", dist.Normal(mean, sd))
        ppl.sample("y", dist.Normal(x, r), obs=y)
        return x, x

    _, xs = jax.lax.scan(step, jnp.zeros(()), (jnp.arange(y.shape[0]), y))
    return xs


def linear_gaussian_answer(y, a=0.8, q=0.6, r=0.4):
    """Posterior mean, covariance and log evidence."""
    y = np.asarray(y, np.float64)
    n = len(y)
    lower = np.array([[a ** (i - j) if i >= j else 0.0 for j in range(n)] for i in range(n)])
    prior = lower @ np.diag([1.0] + [q**2] * (n - 1)) @ lower.T
    marginal = prior + r**2 * np.eye(n)
    gain = prior @ np.linalg.inv(marginal)
    evidence = stats.multivariate_normal(np.zeros(n), marginal).logpdf(y)
    return gain @ y, prior - gain @ prior, float(evidence)


# --- Two coins ----------------------------------------------------------------------------------
# a ~ Bernoulli(0.3), b ~ Bernoulli(0.2 or 0.9 if a), and a factor log 0.25 where a == b. Masses:
# (0,0): 0.7*0.8*0.25 = 0.14; (0,1): 0.7*0.2 = 0.14; (1,0): 0.3*0.1 = 0.03; (1,1): 0.3*0.9*0.25 =
# 0.0675. Evidence 0.3775.


@ppl.model
def two_coins():
    a = ppl.sample("a", dist.Bernoulli(0.3))
    b = ppl.sample("b", dist.Bernoulli(jnp.where(a == 1, 0.9, 0.2)))
    ppl.factor("equal", jnp.where(a == b, jnp.log(0.25), 0.0))
    return a, b


TWO_COINS = {(0, 0): 0.14, (0, 1): 0.14, (1, 0): 0.03, (1, 1): 0.0675}
TWO_COINS_EVIDENCE = 0.3775


# --- Bounds that depend on a draw ---------------------------------------------------------------
# u ~ U(0, 2), v ~ U(0, u), w ~ N truncated to (v, u). The log density at (u, v, w) with
# 0 < v < w < u < 2 is -log 2 - log u + logpdf(w) - log(cdf(u) - cdf(v)).


@ppl.model
def nested_intervals():
    u = ppl.sample("u", dist.Uniform(0.0, 2.0))
    v = ppl.sample("v", dist.Uniform(0.0, u))
    return ppl.sample("w", dist.TruncatedNormal(0.0, 1.0, low=v, high=u))


def nested_intervals_log_density(u: float, v: float, w: float) -> float:
    mass = stats.norm.cdf(u) - stats.norm.cdf(v)
    return -math.log(2) - math.log(u) + float(stats.norm.logpdf(w)) - math.log(mass)


# --- A branch -----------------------------------------------------------------------------------
# w ~ N(0, 1); where w > 0, x ~ Gamma(2, 2) and the run weighs exp(-x); else y ~ U(0, 3).
# E[exp(-x)] = (2 / 3)^2, so the evidence is (4/9 + 1) / 2.


@ppl.model
def branching():
    w = ppl.sample("w", dist.Normal(0.0, 1.0))

    def positive():
        x = ppl.sample("x", dist.Gamma(2.0, 2.0))
        ppl.factor("tilt", -x)
        return x

    return jax.lax.cond(w > 0, positive, lambda: ppl.sample("y", dist.Uniform(0.0, 3.0)))


BRANCHING_EVIDENCE = (4 / 9 + 1) / 2


# --- Subsampling --------------------------------------------------------------------------------
# With m of n observations drawn without replacement and each weighted n / m, the expected log
# likelihood over all ordered subsets is that of all data: every index is in m / n of them.


@ppl.model
def subsampled(y, size=2):
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
    with ppl.plate("n", y.shape[0], subsample_size=size) as index:
        ppl.sample("y", dist.Normal(mu, 1.0), obs=y[index])
    return mu


def ordered_subsets(size: int, count: int) -> np.ndarray:
    return np.array(list(itertools.permutations(range(size), count)))


def normal_log_density(x, mean=0.0, sd=1.0) -> float:
    """Sum of normal log densities, written out."""
    x = np.asarray(x, np.float64)
    sd = np.broadcast_to(np.asarray(sd, np.float64), np.broadcast_shapes(x.shape, np.shape(sd)))
    return float(np.sum(-0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * LOG_2PI))
