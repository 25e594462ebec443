"""A real model under a mask: particles against every continuation, scored one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ppl

lm = ppl.lm
PARTICLES, RUNS = 32, 20


@pytest.fixture(scope="module")
def thousand(smol):
    """The log probability of each three-digit continuation, and whether digits are one token."""
    context = smol.prompt("My favourite number is ", room=3)
    digits = jnp.array([smol.vocabulary.encode(str(d))[0] for d in range(10)])

    def level(state):
        law = jax.nn.log_softmax(smol.logits(state))[digits]
        return law, jax.vmap(lambda t: smol.extend(state, t, jnp.asarray(True)))(digits)

    @jax.jit
    def every(model, state):
        first, states = level(state)
        second, states = jax.vmap(level)(states)
        third = jax.vmap(jax.vmap(lambda s: level(s)[0]))(states)
        return first[:, None, None] + second[:, :, None] + third

    return context, np.asarray(every(smol, context.state), np.float64)


@ppl.model
def number(context):
    """A digit a step, all three of which have to be there."""

    def one(context, _):
        return lm.step("digit", context, max_tokens=1).context, None

    return jax.lax.scan(one, context, None, length=3)[0].text


@pytest.mark.slow
def test_particles_agree_with_all_thousand_continuations(smol, thousand):
    """The mass of the texts, by first digit and in all: unbiased over runs.

    Eleven t tests of twenty runs, together wrong once in a million.
    """
    _, log_masses = thousand
    masked = smol.prompt("My favourite number is ", room=3, mask="[0-9]{3}")
    program = ppl.smc(number(masked), PARTICLES, ess_threshold=1.0)
    found = []
    for k in range(RUNS):
        population = ppl.run(program, k)
        texts = population.values.decode()
        assert all(len(t) == 3 and t.isdigit() for t in texts)
        row = np.zeros(11)
        np.add.at(row, [int(t[0]) for t in texts], np.asarray(population.weights))
        row[10] = 1.0
        found.append(row * np.exp(float(population.log_evidence)))
    masses = np.exp(log_masses)
    wanted = np.append(masses.sum(axis=(1, 2)), masses.sum())
    error = np.std(found, axis=0, ddof=1) / np.sqrt(RUNS)
    assert np.all(error > 0)
    assert error[10] < 0.05 * wanted[10]  # so that the test can fail
    bound = stats.t.isf(1e-6 / 22, RUNS - 1)
    assert np.all(np.abs(np.mean(found, axis=0) - wanted) < bound * error)


@pytest.mark.slow
def test_an_observed_number_weighs_what_it_is_in_the_list(smol, thousand):
    context, log_masses = thousand

    @ppl.model
    def program(context):
        return lm.observe("seen", context, "427").text

    found = float(ppl.log_density(program(context), {}))
    assert found == pytest.approx(log_masses[4, 2, 7], abs=1e-3)
