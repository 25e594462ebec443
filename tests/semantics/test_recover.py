"""recover: the exact conditional distribution of what was summed out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.errors import AddressError, ObservationError, UnsupportedError
from ppl.semantics.marginal import marginalize
from ppl.semantics.recover import recover
from tests.compiling import compilations
from tests.semantics.marginal_loops import CHAIN, LOOPS, NESTING, hmm
from tests.semantics.marginal_models import (
    MEETING,
    PLATES,
    Y4,
    arrays,
    combinations,
    log_densities,
    mixture,
)

pytestmark = pytest.mark.usefixtures("x64")

SMALL = ("mixture", "shared", "cells", "vmapped", "hmm", "hmm_reverse", "second_order", "factorial")
LARGE = ("switching", "hmm_initial", "loop_in_loop", "moving", "delayed", "crossed")
CASES = {**PLATES, **LOOPS, **NESTING, **MEETING}


def as_key(values, i):
    return tuple(tuple(np.ravel(values[a][i]).tolist()) for a in sorted(values))


@pytest.mark.parametrize("name", SMALL + LARGE)
def test_exact_conditional(name):
    model, y, summed, rest = CASES[name]
    program, rest = model(y), arrays(**rest)
    back = recover(marginalize(program), rest)
    assert not back.structure.open_scores
    drawn = ppl.run(back, key=0)
    for a in summed:
        assert drawn[a].shape == program.sites[a].shape
        assert drawn[a].dtype == program.sites[a].dtype
    log_weights = np.asarray(jax.jit(lambda: log_densities(program, summed, rest))())
    weights = np.exp(log_weights - jax.nn.logsumexp(log_weights))
    values = combinations(program, summed)
    exact = {as_key(values, i): w for i, w in enumerate(weights)}
    measure = ppl.enumerate(back)
    found = {a: np.asarray(measure.values[a]) for a in summed}
    total = dict.fromkeys(exact, 0.0)
    for i, w in enumerate(np.exp(measure.log_masses)):
        total[as_key(found, i)] += w
    assert sum(abs(total[k] - w) for k, w in exact.items()) < 1e-10


def test_draws_of_chains():
    """Every draw is recovered given its own values, in one compiled call, with its axes."""
    rest = arrays(mu=[-5.0, 0.0, 5.0], w=[0.2, 0.3, 0.5])
    draws = {a: jnp.broadcast_to(x, (2, 3, *x.shape)) for a, x in rest.items()}
    draws["mu"] = draws["mu"].at[1].set(jnp.array([5.0, 0.0, -5.0]))
    y = np.array([-5.0, 0.0, 5.0, 5.0])
    z = ppl.run(recover(marginalize(mixture(y)), draws), key=0)["z"]
    assert z.shape == (2, 3, 4)  # the probability of any other state is below 1e-10
    np.testing.assert_array_equal(z[0], [[0, 1, 2, 2]] * 3)
    np.testing.assert_array_equal(z[1], [[2, 1, 0, 0]] * 3)


def test_new_data_compile_nothing():
    many = {a: jnp.broadcast_to(x, (2, 3, *x.shape)) for a, x in arrays(**CHAIN).items()}
    assert ppl.run(recover(marginalize(hmm(Y4)), many), key=1)["z"].shape == (2, 3, 4)
    with compilations() as found:
        ppl.run(recover(marginalize(hmm(Y4 + 1)), many), key=2)
    assert found.count == 0


def test_frequencies():
    """100 thousand draws of a loop's states; false alarm 1e-6: 12 z-scores below 5.3."""
    program, rest = LOOPS["hmm"][0](Y4), arrays(**LOOPS["hmm"][3])
    many = {a: jnp.broadcast_to(x, (100_000, *x.shape)) for a, x in rest.items()}
    z = ppl.run(recover(program, many), key=3)["z"]
    lp = log_densities(program, {"z": range(3)}, rest)
    values, p = combinations(program, {"z": range(3)})["z"], jnp.exp(lp - jax.nn.logsumexp(lp))
    for state in range(3):
        exact = p @ (values == state)
        score = (jnp.mean(z == state, 0) - exact) / jnp.sqrt(exact * (1 - exact) / len(z))
        assert np.max(np.abs(score)) < 5.3


@ppl.model
def recorded(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0).expand([2]))
    ppl.deterministic("plain", mu + 1)
    with ppl.plate("n", 4):
        z = ppl.sample("z", dist.Bernoulli(0.3))
        mean = ppl.deterministic("mean", mu[z])
        ppl.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_deterministics_come_back():
    marginal = marginalize(recorded(Y4))
    assert marginal.sites.addresses("deterministic") == ("plain",)
    mu = jnp.array([[0.1, 2.0], [3.0, -1.0]])
    out = ppl.run(recover(marginal, {"mu": mu, "plain": mu + 1}), key=0)
    assert set(out) == {"z", "mean"}
    np.testing.assert_array_equal(out["mean"], jnp.take_along_axis(mu, out["z"], 1))


def test_from_the_program_itself():
    """What the choices lack is drawn."""
    program, rest = recorded(Y4), arrays(mu=[0.1, 2.0])
    one = ppl.run(recover(program, rest), key=0)
    two = ppl.run(recover(marginalize(program), rest), key=0)
    np.testing.assert_array_equal(one["z"], two["z"])


def test_refusals():
    marginal = marginalize(recorded(Y4))
    with pytest.raises(AddressError, match='recover got no value for "mu"'):
        recover(marginal, {})
    with pytest.raises(AddressError, match='recover got unknown address "nu"'):
        recover(marginal, {"nu": 1.0})
    with pytest.raises(
        ObservationError, match=r"shape \(3,\) at \"mu\".*needs shape \(\.\.\., 2\)"
    ):
        recover(marginal, {"mu": np.zeros(3)})

    @ppl.model
    def branches():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))

        def one(p):
            return lambda: ppl.sample("z", dist.Bernoulli(p))

        jax.lax.cond(x > 0, one(0.2), one(0.7))

    with pytest.raises(UnsupportedError, match='recover got "z" in several branches'):
        recover(branches(), {"x": 1.0})
