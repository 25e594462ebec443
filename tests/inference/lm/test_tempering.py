"""Tempering: exact invariance, what breaks it, and the way from the start to the target."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl.errors import ArgumentError
from ppl.inference.lm.tempering import exchange, replicas, tempering
from tests.inference.lm.tasks import share, strict, task

# The package has a function of that name.
module = importlib.import_module("ppl.inference.lm.tempering")

pytestmark = pytest.mark.usefixtures("x64")

FEW = ppl.lm.Vocabulary(["a", None])


@pytest.mark.parametrize(
    ("ladder", "settings"),
    [
        ((1.0,), {}),
        ((0.3, 1.0), {}),
        ((0.0, 1.0), {"verifier": strict}),
        ((0.5, 2.0), {"aggregate": "last", "link": "logit", "absorbing": False}),
        ((0.0, 0.4, 1.0), {"words": FEW}),
    ],
)
def test_the_kernel_leaves_the_replicas_invariant(ladder, settings):
    of = task(2, 1, **settings)
    report = ppl.check.invariant(exchange(ladder), replicas(of, ladder))
    assert report.false_alarm == 0  # by enumeration
    report.require()


def test_replicas_are_the_task_at_powers_of_its_potential():
    of, ladder = task(2, 1), (0.0, 0.5, 1.0)
    measure = ppl.enumerate(replicas(of, ladder))
    for i, heat in enumerate(ladder):
        alone = ppl.enumerate(task(2, 1, sharpness=heat).program).normalize()
        tokens = alone.marginal(lambda answer: answer.text.tokens)
        mine = measure.marginal(lambda answers, i=i: answers.text.tokens[i]).normalize()
        assert mine.total_variation(tokens) < 1e-12


def test_wrong_kernels_are_found(monkeypatch):
    of, ladder = task(2, 1), (0.3, 1.0)
    program = replicas(of, ladder)
    # That of other temperatures,
    assert not ppl.check.invariant(exchange((0.3, 0.8)), program)
    # one that accepts and swaps whatever comes,
    monkeypatch.setattr(module, "_chance", lambda after, before: jnp.ones_like(after))
    assert not ppl.check.invariant(exchange(ladder), program)


@pytest.mark.parametrize("verifier", [share, strict])
def test_chains_come_to_the_target_and_stones_to_the_evidence(verifier):
    # The law of the answer after n sweeps, and the mean evidence estimate of that one sweep:
    # independent replicas at their own temperatures make it unbiased.
    of = task(2, verifier=verifier)
    exact = ppl.enumerate(of.program)
    wanted = exact.normalize().marginal(lambda answer: answer.text.tokens)
    distances, errors = [], []
    for sweeps in (0, 8, 32):
        program = tempering(of, 1, num_warmup=sweeps, inverse_temperatures=(0.0, 1.0))
        found = ppl.enumerate(program)
        law = found.marginal(lambda p: p.values.text.tokens[0])
        distances.append(law.total_variation(wanted))
        errors.append(abs(found.expect(lambda p: jnp.exp(p.log_evidence)) / exact.total_mass - 1))
    assert distances[0] > 0.1
    assert distances[1] < 0.5 * distances[0]
    assert distances[2] < 0.02 * distances[0]
    assert errors[2] < 0.02 * errors[0]


def test_long_runs_agree_with_the_exact_means():
    # 48 independent chains; |z| < 6 in each of two has a false alarm of 4e-9 for normal means, and
    # less than 1e-5 with 47 degrees of freedom. What is left of the start is far less than that.
    of = task(2)
    exact = ppl.enumerate(of.program)
    program = tempering(of, 60, num_warmup=60, inverse_temperatures=(0.0, 1.0))
    found = jax.jit(jax.vmap(lambda key: ppl.run(program, key)))(
        jax.random.split(jax.random.key(0), 48)
    )
    mean = exact.normalize().expect(lambda answer: answer.log_potential)
    wanted = [mean, exact.total_mass]
    runs = np.stack([found.values.log_potential.mean(1), np.exp(found.log_evidence)], 1)
    z = (runs.mean(0) - wanted) / (runs.std(0) / np.sqrt(48))
    assert np.all(np.abs(z) < 6)
    # And what a run shows.
    one = jax.tree.map(lambda x: x[0], found)
    assert one.num_particles == 60
    assert one.values.scores.shape == (60, 2)
    assert one.steps["accepted"].shape == (2,)
    assert one.steps["swapped"].shape == (1,)
    assert one.steps["accepted"][0] == 1  # at 0 the model's own law is the target
    assert np.isnan(one.expect(lambda a: a.log_potential).standard_error)  # one family


def test_all_lost():
    of = task(2, verifier=lambda c: 0.0 * c.length)
    for found, _ in ppl.enumerate(tempering(of, 2, inverse_temperatures=(0.0, 1.0))):
        assert found.log_evidence == -np.inf
        assert np.all(found.log_weights == -np.inf)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: tempering(task(2).program, 4), "Reasoning"),
        (lambda: tempering(task(2), 0), "num_samples"),
        (lambda: tempering(task(2), 4, inverse_temperatures=(0.5, 1.0)), "from 0 to 1"),
        (lambda: replicas(task(2), (1.0, 0.5)), "increasing"),
        (lambda: exchange((-1.0, 0.5)), "increasing"),
    ],
)
def test_refusals(make, said):
    with pytest.raises(ArgumentError, match=said):
        make()
