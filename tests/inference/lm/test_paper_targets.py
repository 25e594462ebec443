"""What "Inference-time scaling by particle methods" declares, and what it and its code sample.

Puri et al. (2025) state the target p(x) prod_t r(x_t). Their Algorithm 1 resamples at every step by
softmax(r); the published code by softmax(logit(r) / T) of the last score, of finished particles
too. A filter that is always resampled by weights G_t targets p(x) prod_t G_t: so these are three
laws. Here, on texts of up to six of five tokens, by enumeration.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl.resampling import MultinomialResampling
from tests.inference.lm.tables import law

pytestmark = pytest.mark.usefixtures("x64")

WORDS = ppl.lm.Vocabulary(["a", "b", "c", "d", None])
MOST = 6
#: Logits of the verifier's score, by length, the token before the last (4 if none) and the last.
LOGITS = np.random.default_rng(0).normal(0.0, 1.0, (MOST, 5, 5))
T = 0.8

DECLARED = {"link": "log"}
ALGORITHM = {"link": "identity"}
CODE = {"link": "logit", "absorbing": False, "sharpness": 1 / T}


def verifier(context):
    last = context.length - 1
    before = jnp.where(last > 0, context.tokens[jnp.maximum(last - 1, 0)], 4)
    return jax.nn.sigmoid(jnp.asarray(LOGITS)[last, before, context.tokens[last]])


def model():
    return ppl.lm.Table.random(WORDS, 0, order=1)


def task(steps=MOST, **settings):
    context = model().prompt(room=steps)
    return ppl.lm.reasoning(context, verifier, num_steps=steps, stop=None, max_tokens=1, **settings)


def scores(text):
    """The score after each token."""
    pairs = zip((4, *text[:-1]), text, strict=True)
    return [1 / (1 + math.exp(-LOGITS[n, before, last])) for n, (before, last) in enumerate(pairs)]


@functools.cache
def by_definition(kind, steps=MOST):
    """The normalised target, text by text, in plain Python."""
    found = {}
    for text, mass in law(model(), steps).items():
        r = scores(text)
        if kind == "code":  # a finished particle is weighed by its last score at every later step
            r = r + [r[-1]] * (steps - len(r))
        weight = {
            "declared": lambda x: x,
            "algorithm": math.exp,
            "code": lambda x: (x / (1 - x)) ** (1 / T),
        }[kind]
        found[text] = mass * math.prod(map(weight, r))
    total = sum(found.values())
    return {text: mass / total for text, mass in found.items()}, total


def enumerated(program):
    found = {}
    for answer, mass in ppl.enumerate(program):
        key = tuple(answer.text.tokens[: int(answer.text.length)].tolist())
        found[key] = found.get(key, 0.0) + mass
    return found


def variation(one, other):
    return 0.5 * sum(abs(one.get(t, 0.0) - other.get(t, 0.0)) for t in {*one, *other})


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("declared", DECLARED), ("algorithm", ALGORITHM), ("code", CODE)],
    ids=["declared", "algorithm", "code"],
)
def test_the_task_is_the_definition(kind, settings):
    wanted, total = by_definition(kind)
    found = enumerated(task(**settings).program)
    assert len(wanted) == sum(4**n for n in range(6)) + 4**6
    assert sum(found.values()) == pytest.approx(total, rel=1e-12)
    assert variation({t: m / total for t, m in found.items()}, wanted) < 1e-12


def published(of, potential, weighs_finished):
    """The filter as published: two particles, drawn anew at every step by the last score alone.

    Beside it the mean weights are multiplied up, so that it is comparable with a measure.
    """

    @ppl.model
    def filtered():
        def one(runs, _):
            moved, score = jax.vmap(of.advance)(runs)
            counts = weighs_finished | ~runs.context.finished
            log_weights = jnp.where(counts, potential(score), 0.0)
            ppl.factor("mean", jax.nn.logsumexp(log_weights) - jnp.log(2.0))
            parents = ppl.sample("parents", MultinomialResampling(log_weights))
            return jax.tree.map(lambda x: x[parents], moved), None

        start = jax.tree.map(lambda x: jnp.stack([x, x]), of.start())
        runs, _ = jax.lax.scan(one, start, None, length=of.num_steps)
        either = ppl.sample("either", ppl.distributions.Categorical(jnp.full(2, 0.5)))
        return jax.vmap(lambda run: run.context.tokens)(runs)[either]

    return filtered()


@pytest.mark.parametrize(
    ("settings", "potential", "weighs_finished"),
    [
        (ALGORITHM, lambda r: r, False),
        (CODE, lambda r: (jnp.log(r) - jnp.log1p(-r)) / T, True),
    ],
    ids=["algorithm", "code"],
)
def test_a_filter_that_always_resamples_targets_the_product(settings, potential, weighs_finished):
    of = task(3, **settings)
    target = ppl.enumerate(of.program).marginal(lambda answer: answer.text.tokens)
    found = ppl.enumerate(published(of, potential, weighs_finished))
    assert found.total_variation(target) < 1e-10 * target.total_mass
    declared = ppl.enumerate(task(3, **DECLARED).program).normalize()
    declared = declared.marginal(lambda answer: answer.text.tokens)
    assert found.normalize().total_variation(declared) > 0.1


def test_the_three_targets_differ():
    # Here by .81, .41 and .90; the bound is well below each.
    kinds = {"declared": DECLARED, "algorithm": ALGORITHM, "code": CODE}
    tokens = lambda answer: answer.text.tokens  # noqa: E731
    measures = {
        kind: ppl.enumerate(task(**settings).program).marginal(tokens).normalize()
        for kind, settings in kinds.items()
    }
    for one, other in itertools.combinations(kinds, 2):
        defined = variation(by_definition(one)[0], by_definition(other)[0])
        assert measures[one].total_variation(measures[other]) == pytest.approx(defined, abs=1e-12)
        assert defined > 0.35


def test_smc_on_the_declared_task_is_right():
    ppl.check.preserves(lambda p: ppl.smc(p, 2), task(3, **DECLARED).program).require()


def test_smc_on_all_six_steps():
    # By draws: masses of events, weighted by the evidence estimate. Of four |z| < 5.5 has a false
    # alarm of less than two in ten million.
    of, (wanted, total) = task(**DECLARED), by_definition("declared")

    def events(tokens, length):
        return jnp.stack([length >= 0, length >= 4, tokens[0] == 1, tokens[1] == 2])

    program = ppl.smc(of.program, 8, trajectories=False)

    def one(key):
        p = ppl.run(program, key)
        hits = jax.vmap(events)(p.values.text.tokens, p.values.text.length)
        return jnp.exp(p.log_evidence) * p.weights @ hits

    estimates = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 2000)))
    padded = {t: np.array([*t, *[4] * (MOST - len(t))]) for t in wanted}
    exact = sum(total * m * np.asarray(events(padded[t], len(t)), float) for t, m in wanted.items())
    z = (estimates.mean(0) - exact) / (estimates.std(0) / np.sqrt(len(estimates)))
    assert np.all(np.abs(z) < 5.5)
    mean = estimates.mean(0)
    shares, error = mean[1:] / mean[0], estimates.std(0)[1:] / np.sqrt(len(estimates)) / mean[0]
    for kind in ("algorithm", "code"):  # which would be seen
        other, _ = by_definition(kind)
        theirs = sum(m * np.asarray(events(padded[t], len(t)), float) for t, m in other.items())
        assert np.max(np.abs(shares - theirs[1:]) / error) > 20
