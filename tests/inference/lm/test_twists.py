"""Twists: the target stays, a perfect one leaves nothing to chance, and one can be learnt."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl.errors import ArgumentError, ResultError
from tests.inference.lm.tables import WORDS, probabilities, table

pytestmark = pytest.mark.usefixtures("x64")
lm, STEPS, V = ppl.lm, 3, len(WORDS)
SCORES = jnp.array([0.9, 0.05, 0.3, 0.6, 0.2])


def last_token(context):
    return context.tokens[jnp.maximum(context.length - 1, 0)]


def verifier(context):
    return SCORES[last_token(context)]


def task_of(model):
    return lm.reasoning(
        model.prompt(room=STEPS), verifier, num_steps=STEPS, max_tokens=1, stop=None
    )


def features(context):
    """Which token was the last, at each length: enough for the exact answer of a bigram table."""
    place = jnp.arange(STEPS)[:, None] == context.length - 1
    return (place & (jnp.arange(V) == last_token(context))).reshape(-1).astype(float)


def to_come(model):
    """The mean of the weight to come, by the number of steps left and the last token."""
    rows = np.ones(V)
    found = [rows]
    for _ in range(STEPS - 1):
        laws = np.stack([probabilities(model, (t,)) for t in range(V)])
        rows = laws @ (np.asarray(SCORES) * rows)
        rows[WORDS.end] = 1.0
        found.append(rows)
    return np.stack(found)


@pytest.mark.parametrize("method", [lambda p: ppl.smc(p, 2), lambda p: ppl.importance(p, 2)])
def test_a_twist_keeps_the_target(method):
    task = task_of(table(1))
    wrong = task.twisted(lambda context: 0.4 * (last_token(context) == 0) - 0.1 * context.length)
    plain, twisted = (ppl.enumerate(t.program) for t in (task, wrong))
    assert plain.total_variation(twisted) < 1e-12
    report = ppl.check.preserves(method, wrong.program)
    assert report.passed, report


def test_a_good_twist_makes_the_evidence_less_noisy():
    """Every token has to be an "a", and a judge says so at the end only.

    Of eight runs without a guess few arrive; with one, each step is a selection of its own.
    """
    words = lm.Vocabulary(["a", "b", None])
    model = lm.Table(words, jnp.log(jnp.array([0.3, 0.69, 0.01])))

    def all_a(context):
        return jnp.all((context.tokens == 0) | (jnp.arange(STEPS) >= context.length))

    def late(context):
        return jnp.where((context.length < STEPS) | all_a(context), 1.0, 0.001)

    task = lm.reasoning(model.prompt(room=STEPS), late, num_steps=STEPS, max_tokens=1, stop=None)
    twisted = task.twisted(
        lambda c: jnp.where(all_a(c), jnp.log(0.3) * (STEPS - c.length), jnp.log(0.001))
    )
    exact = float(ppl.enumerate(task.program).total_mass)
    spread = {}
    for name, one in (("plain", task), ("twisted", twisted)):
        program = ppl.smc(one.program, 8, ess_threshold=1.0)
        runs = np.exp([float(ppl.run(program, k).log_evidence) for k in range(60)])
        spread[name] = np.std(runs, ddof=1)
        assert abs(np.mean(runs) - exact) < 5 * spread[name] / np.sqrt(60)
    assert spread["twisted"] < 0.8 * spread["plain"]


def test_what_is_learnt_is_the_mean_weight_to_come():
    """With features that can say it, the guess comes to the mean of its own texts, exactly."""
    model, samples = table(3), 4096
    task = task_of(model)
    twist = lm.learn_twist(task, features, num_samples=samples, ridge=1e-8, num_updates=400)
    wanted = np.log(to_come(model))
    weights = np.asarray(twist.weights).reshape(STEPS, V) + float(twist.offset)
    for step, token in itertools.product(range(STEPS - 1), range(V)):
        if token != WORDS.end:
            # At least a hundred texts come by here; weights lie between 0.05 and 1.
            assert abs(weights[step, token] - wanted[STEPS - 1 - step, token]) < 0.25
    report = ppl.check.preserves(lambda p: ppl.smc(p, 2), task.twisted(twist).program)
    assert report.passed, report


def test_what_cannot_be_learnt_from_is_refused():
    model = table(4)
    task = task_of(model)
    with pytest.raises(ArgumentError, match="a vector for each text"):
        lm.learn_twist(task, lambda context: context.length)
    hopeless = lm.reasoning(
        model.prompt(room=2), lambda c: jnp.zeros(()), num_steps=2, max_tokens=1, stop=None
    )
    with pytest.raises(ResultError, match="positive weight"):
        lm.learn_twist(hopeless, features, num_samples=8)


def test_annealed_resampling_keeps_the_target():
    report = ppl.check.preserves(
        lambda p: ppl.smc(p, 2, ess_threshold=1.0, resample_power=lm.annealed),
        task_of(table(5)).program,
    )
    assert report.passed, report
    assert float(lm.annealed(0.25, 0.2)) == pytest.approx(1 / (0.8 / 0.25))
    assert float(lm.annealed(0.6, 0.2)) == 1.0
    assert float(lm.annealed(0.25, 0.6)) == 1.0
