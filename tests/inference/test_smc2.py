"""SMC^2: exact on finite programs, with and without moves; a linear-Gaussian series."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.errors import AddressError, ArgumentError, UnsupportedError
from ppl.inference import particle_marginal
from ppl.inference import smc2 as module
from ppl.inference.smc2 import smc2
from tests.compiling import compilations
from tests.inference.test_pmmh import SERIES, autoregression, flat, posterior
from tests.inference.test_pseudo_marginal import (
    DATA,
    exactly,
    flip,
    hmm,
    switching,
    with_parameters,
)
from tests.laws import continuations, law, tiny


def population(num_parameters, num_particles, num_moves=1, every=1, names="a", proposal=flip):
    options = {"move_every": every, "proposal": proposal} if num_moves else {}
    return lambda program: smc2(
        program, names, num_parameters, num_particles, 1.0, num_moves, **options
    )


# --- Exact --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "settings", [(2, 2, 0), (2, 1), (2, 2), (2, 1, 2)], ids=["no move", "1", "2", "two moves"]
)
def test_the_measure_stays(settings):
    exactly(ppl.check.preserves(population(*settings), hmm(DATA))).require()


@pytest.mark.usefixtures("x64")
def test_moves_that_uneven_weights_decide_on_are_biased():
    """As the docstring says: what decides on a move depends on what is moved."""
    report = exactly(ppl.check.preserves(population(2, 1, every=None), hmm(DATA)))
    assert report.verdict == "failed"


@ppl.model
def two_loops(y):
    """Scores before, between and after; one loop goes backwards, and has a loop inside."""
    a = ppl.sample("a", dist.Bernoulli(0.4))
    x = ppl.sample("x", dist.Bernoulli(0.3))
    ppl.factor("first", -0.2 * x - 0.1 * a)

    def forth(x, y):
        x = ppl.sample("forth", dist.Bernoulli(0.2 + 0.3 * x + 0.2 * a))
        ppl.factor("f", -0.5 * (x - y) ** 2)
        return x, x + a

    def back(x, row):
        def inner(x, _):
            ppl.factor("g", -0.3 * x * a)
            return 1 - x, None

        x, _ = jax.lax.scan(inner, jnp.abs(x - row) % 2, None, length=2)
        return x, 2 * x

    x, rows = jax.lax.scan(forth, x, y)
    ppl.factor("between", -0.4 * jnp.sum(rows))
    x, rows = jax.lax.scan(back, x, rows, reverse=True)
    last = ppl.sample("last", dist.Bernoulli(0.1 + 0.8 * x))
    ppl.factor("after", -0.7 * last)
    return a, rows, last


@pytest.mark.usefixtures("x64")
def test_a_filter_is_run_again_through_all_that_has_happened():
    # A single draw of the parameters: what is wrong with a move cannot hide behind resampling.
    exactly(ppl.check.preserves(population(1, 1), two_loops(DATA))).require()
    exactly(ppl.check.preserves(population(2, 1, 0), two_loops(DATA))).require()
    result = population(3, 2)(two_loops(DATA)).structure.shapes
    assert result.steps["ess"].shape == (4,)
    assert result.choices["forth"].shape == (3, 2)


@ppl.model
def flips(now):
    ppl.sample("a", dist.Bernoulli(jnp.where(now["a"] == 1, 0.3, 0.9)))
    ppl.sample("b", dist.Bernoulli(0.5 - 0.2 * now["a"]))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@hypothesis.settings(law, max_examples=25)
@hypothesis.given(tiny, continuations, st.sampled_from([(2, 1, 0), (1, 2, 1), (1, 1, 2)]))
def test_random_programs(program, f, settings):
    transformed = population(*settings, names=("a", "b"), proposal=flips)
    exactly(ppl.check.preserves(transformed, with_parameters(program, f))).require()


# --- Mutants ------------------------------------------------------------------------------------


def of_all_data(filter, k, t):
    """Reach the right state, with the evidence of the whole data."""
    _, state = rerun(filter, k, t)
    with ppl.scope("whole"):
        return rerun(filter, k, DATA.size)[0], state


def stale(space, again, point, root):
    """Accept, and keep the evidence estimate of before."""
    new, probability = move(space, again, point, root)
    return new._replace(log_evidence=point.log_evidence), probability


def forgetful(self, position, root):
    """Propose without a ratio."""
    return propose(self, position, root)[0], 0.0


rerun, move, propose = module._rerun, module.move, particle_marginal.Given.propose


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (module, "_rerun", rerun),
        (module, "_rerun", of_all_data),
        (module, "move", stale),
        (particle_marginal.Given, "propose", forgetful),
    ],
    ids=["nothing", "evidence of the whole data", "stale evidence", "no proposal ratio"],
)
def test_mutants_are_rejected(monkeypatch, owner, name, wrong):
    monkeypatch.setattr(owner, name, wrong)
    fresh = ppl.model(lambda y: switching(y))  # staged with what is patched
    report = exactly(ppl.check.preserves(population(1, 1, 2), fresh(DATA)))
    assert report.passed == (wrong is rerun)


# --- Linear-Gaussian ----------------------------------------------------------------------------


@ppl.model
def near(now):
    ppl.sample("a", dist.Normal(now["a"], 0.4))


@pytest.mark.slow
def test_evidence_and_sums_are_unbiased():
    """400 runs against quadrature of the Kalman likelihood. Each |z| < 5: 1e-6 for each of 2."""
    q = smc2(autoregression(SERIES), ["a"], 20, 10, proposal=near, move_every=3)

    def one(key):
        result = ppl.run(q, key)
        return result.log_evidence, result.weights @ result.choices["a"]

    keys = jax.random.split(jax.random.key(0), 400)
    log_evidence, mean = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
    exact, _, log_exact = posterior()
    z = np.exp(np.asarray(log_evidence, np.float64) - log_exact)
    for found, right in ((z, 1.0), (z * np.asarray(mean), exact)):
        assert abs(found.mean() - right) < 5 * found.std() / np.sqrt(len(found))


def test_the_default_proposal():
    """One large population. |z| < 5, which is 1e-6, but for a bias of the order of 1 / 500."""

    def run(y):
        return ppl.run(smc2(autoregression(y), ["a"], 500, 20, num_moves=2), key=0)

    result = run(SERIES)
    exact, _, log_exact = posterior()
    assert abs(result.log_evidence - log_exact) < 5 * result.log_evidence_se
    mean, error = result.expect("a")
    assert abs(mean - exact) < 5 * error
    moved = result.steps["resampled"]
    assert np.any(moved)
    rates = result.steps["acceptance_rate"]
    assert np.all((rates > 0.1) == moved)
    assert np.all(rates < 0.7)
    assert result.choices["x"].shape == (500, SERIES.size)
    assert len(np.unique(result.choices["a"])) > 250
    with compilations() as count:
        run(SERIES[::-1])
    assert count.count == 0


@pytest.mark.slow
def test_a_run_without_evidence_has_none():
    @ppl.model
    def never(y):
        a = ppl.sample("a", dist.Beta(2.0, 2.0))

        def step(x, y):
            x = ppl.sample("x", dist.Bernoulli(a))
            ppl.factor("f", jnp.where(y > 0, 0.0, -jnp.inf))
            return x, None

        jax.lax.scan(step, 0, y)
        return a

    result = ppl.run(smc2(never(np.array([1.0, 0.0, 1.0])), ["a"], 4, 2, trajectories=False), key=0)
    assert result.log_evidence == -jnp.inf
    assert np.all(result.log_weights == -jnp.inf)
    assert np.all(np.isfinite(result.choices["a"]))
    assert tuple(result.choices) == ("a",)


# --- Errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: smc2(hmm(DATA), ["c"], 2, 2), AddressError, 'smc2 got unknown address "c"'),
        (lambda: smc2(hmm(DATA), ["a"], 0, 2), ArgumentError, "num_parameters=0"),
        (lambda: smc2(hmm(DATA), ["a"], 2, 0), ArgumentError, "num_particles=0"),
        (lambda: smc2(hmm(DATA), ["a"], 2, 2, 2.0), ArgumentError, "ess_threshold=2.0"),
        (lambda: smc2(hmm(DATA), ["a"], 2, 2, move_every=0), ArgumentError, "move_every=0"),
        (lambda: smc2(hmm(DATA), ["a"], 2, 2, num_moves=0, proposal=flip), ArgumentError, "moves"),
        (lambda: smc2(hmm(DATA), ["a"], 2, 2), UnsupportedError, 'discrete parameter "a"'),
        (lambda: smc2(flat(), ["a"], 2, 2), UnsupportedError, 'flat prior at "a"'),
        (lambda: smc2(hmm(DATA), ["a"], 2, 2, moves=1), ArgumentError, 'mean "num_moves"'),
    ],
)
def test_errors(call, kind, words):
    with pytest.raises(kind, match=words):
        call()
