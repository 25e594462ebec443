"""`pmmh`: discrete and continuous parameters against exact posteriors; starts; errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ppl
import ppl.distributions as dist
from ppl.errors import (
    AddressError,
    ArgumentError,
    InitializationError,
    OpenObservationsError,
    UnsupportedError,
)
from ppl.inference.particle_marginal import space_of
from ppl.inference.pmmh import _Adaptation, pmmh
from ppl.inference.pmmh_kernel import pmmh as kernel
from ppl.inference.pseudo_marginal import prior, pseudo_marginal
from ppl.results.diagnostics import ess
from tests.compiling import compilations
from tests.inference.test_pseudo_marginal import DATA, flip, hmm

# --- Chains -------------------------------------------------------------------------------------


def z_score(draws, mean):
    """(average - mean) in Monte Carlo standard errors, by effective sample size."""
    draws = np.asarray(draws, np.float64)
    return (draws.mean() - mean) / (draws.std() / np.sqrt(float(ess(draws, "mean"))))


def require_posterior(chains, program):
    """Every |z| < 5: a false alarm in 1e6 for each of 3."""
    exact = ppl.enumerate(program).normalize()
    features = lambda a, x: jnp.stack([a, x[..., 0], a * x[..., 1]])  # noqa: E731
    means = exact.expect(lambda value: features(*value))
    found = features(chains["a"], chains["x"])
    assert all(abs(z_score(x, mean)) < 5 for x, mean in zip(found, means, strict=True))


def test_chains_of_discrete_parameters():
    def chains(y, num_warmup):
        made = pmmh(hmm(y), ["a"], 3, flip, 2000, num_warmup, 4, init={"a": [0, 1, 0, 1]})
        return ppl.run(made, key=0, progress=False)

    found = chains(DATA, 10)
    require_posterior(found, hmm(DATA))
    assert found.draws["x"].shape == (4, 2000, 2)
    assert set(found.stats) == {"acceptance_rate", "log_evidence", "lp"}
    prior_mass = np.where(found["a"] == 1, 0.4, 0.6)
    lp = found.stats["lp"] - found.stats["log_evidence"]
    np.testing.assert_allclose(lp, np.log(prior_mass), rtol=1e-5)
    assert found.predictive(1)["y"].shape == (4, 2000, 2)
    with compilations() as count:
        other = chains(1 - DATA, 0)
    assert count.count == 0
    require_posterior(other, hmm(1 - DATA))


def test_the_default_proposal_is_fixed_after_warmup():
    class about:  # noqa: N801 - stands for the settings
        num_warmup, target_accept = 3, 0.234

    state = _Adaptation.at(jnp.zeros(2))
    seen = []
    for step in range(5):
        state = state.updated(jnp.full(2, step + 1.0), 0.9, about)
        seen.append(np.concatenate([np.ravel(x) for x in state[:3]]))
    changed = [not np.array_equal(a, b) for a, b in zip(seen[1:], seen, strict=False)]
    assert changed == [True, True, False, False]


@ppl.model
def impossible(y):
    a = ppl.sample("a", dist.Beta(2.0, 2.0))
    ppl.sample("x", dist.Normal(a, 1.0))
    ppl.factor("never", jnp.where(y > 0, 0.0, -jnp.inf))


def test_a_start_without_evidence_is_an_error():
    with pytest.raises(InitializationError, match="no parameters of positive estimated evidence"):
        ppl.run(pmmh(impossible(np.array(0.0)), ["a"], 2, num_samples=1), key=0, progress=False)


# --- Linear-Gaussian: a = the autoregression's coefficient, unknown ------------------------------

SERIES = np.array([0.7, 1.1, 0.6, -0.3, -0.8, -0.2, 0.5, 0.9], np.float32)
NOISE, ERROR = 0.5, 0.4


@ppl.model
def autoregression(y):
    a = ppl.sample("a", dist.Uniform(-1.0, 1.0))

    def step(x, y):
        x = ppl.sample("x", dist.Normal(a * x, NOISE))
        ppl.sample("y", dist.Normal(x, ERROR), obs=y)
        return x, None

    jax.lax.scan(step, jnp.zeros(()), y)
    return a


def likelihood(a, y=SERIES):
    """The Kalman filter."""
    mean, variance, total = 0.0, 0.0, 0.0
    for value in np.asarray(y, np.float64):
        mean, variance = a * mean, a * a * variance + NOISE**2
        total += stats.norm.logpdf(value, mean, np.sqrt(variance + ERROR**2))
        gain = variance / (variance + ERROR**2)
        mean, variance = mean + gain * (value - mean), (1 - gain) * variance
    return total


def posterior(y=SERIES):
    """Moments of a, and the evidence: Gauss-Legendre quadrature under the uniform prior."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    mass = 0.5 * weights * np.exp([likelihood(a, y) for a in nodes])
    evidence = mass.sum()
    return mass @ nodes / evidence, mass @ nodes**2 / evidence, np.log(evidence)


@pytest.mark.slow
def test_an_autoregression_by_the_default_proposal():
    # Each |z| < 5: a false alarm in 1e6 for each of 2.
    made = pmmh(
        autoregression(SERIES), ["a"], 20, num_samples=4000, num_warmup=2000, trajectories=False
    )
    chains = ppl.run(made, key=0, progress=False)
    mean, square, _ = posterior()
    assert abs(z_score(chains["a"], mean)) < 5
    assert abs(z_score(chains["a"] ** 2, square)) < 5
    assert 0.15 < chains.stats["acceptance_rate"].mean() < 0.35  # tuned to 0.234 in warmup
    assert tuple(chains.draws) == ("a",)
    assert chains.predictive(1)["y"].shape == (4, 4000, SERIES.size)


# --- Errors -------------------------------------------------------------------------------------


@ppl.model
def two(now):
    ppl.sample("a", dist.Bernoulli(0.5))
    ppl.sample("b", dist.Bernoulli(0.5))


@ppl.model
def scoring(now):
    ppl.sample("a", dist.Bernoulli(0.5))
    ppl.factor("f", 0.0)


@ppl.model
def real(now):
    ppl.sample("a", dist.Normal(0.0, 1.0))


@ppl.model
def flat():
    a = ppl.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
    b = ppl.sample("b", dist.Normal(a, 1.0))
    ppl.sample("y", dist.Normal(b, 1.0), obs=jnp.zeros(()))


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: pmmh(hmm(DATA), ["c"], 2, flip), AddressError, 'unknown address "c"'),
        (lambda: pmmh(hmm(DATA), ["a", "a"], 2, flip), ArgumentError, "different addresses"),
        (lambda: pmmh(hmm(DATA), [], 2, flip), AddressError, "got no parameters"),
        (lambda: pmmh(hmm(DATA), ["x"], 2, flip), UnsupportedError, 'parameter "x".*inside scan'),
        (lambda: pmmh(flat(), ["b"], 2), UnsupportedError, 'parameter "b".*depends on a'),
        (lambda: pmmh(hmm(DATA), ["a"], 2), UnsupportedError, 'discrete parameter "a".*proposal='),
        (lambda: pmmh(hmm(DATA), ["a"], 2, two), AddressError, "draws a, b; needs.*draws a"),
        (lambda: pmmh(hmm(DATA), ["a"], 2, real), AddressError, "proposal of continuous values"),
        (lambda: pmmh(hmm(DATA), ["a"], 2, scoring), OpenObservationsError, 'scores at "f"'),
        (lambda: pmmh(flat(), ["a"], 2), UnsupportedError, 'flat prior at "a".*init='),
        (lambda: pmmh(hmm(DATA), ["a"], 0, flip), ArgumentError, "num_particles=0"),
        (lambda: pmmh(hmm(DATA), ["a"], 2, flip, 0), ArgumentError, "num_samples=0"),
        (
            lambda: pmmh(hmm(DATA), ["a"], 2, flip, target_accept=0.3),
            ArgumentError,
            "beside a proposal",
        ),
        (lambda: pmmh(hmm(DATA), ["a"], 2, flip, init={"x": 1}), AddressError, "pmmh.init="),
        (lambda: pmmh(hmm(DATA), ["a"], 2, flip, init=[1]), AddressError, "choices of type list"),
        (lambda: pmmh(hmm(DATA), ["a"], 2, flip, inits=1), ArgumentError, "Did you mean"),
        (lambda: pseudo_marginal(hmm(DATA), ["a"], -1), ArgumentError, "num_particles=-1"),
        (lambda: kernel(["a"], None), ArgumentError, "kernels.pmmh got the proposal None"),
        (lambda: space_of("test", prior(flat(), ("a",)), two), AddressError, "draws a, b"),
    ],
)
def test_errors(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
