"""Reasoning and judges: declared weights, population methods, the best, votes."""

import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl.errors import ArgumentError, ResultError
from tests.inference.lm.tables import END, enumerated, law, same, table

pytestmark = pytest.mark.usefixtures("x64")
lm = ppl.lm
A, B, AB, LINE = range(4)


def _points(program):
    measure = ppl.enumerate(program)
    return zip(measure.points, measure.masses, strict=True)


# --- Populations --------------------------------------------------------------------------------


def first_a(context):
    """A verifier that is a JAX function."""
    written = jnp.arange(context.room) < context.length
    return 0.2 + 0.2 * jnp.sum((context.tokens == A) & written)


@pytest.mark.parametrize("aggregate", ["product", "last", "min", "max", "mean"])
def test_reasoning_has_the_declared_weight(aggregate):
    model = table(20)
    task = lm.reasoning(
        model.prompt(room=3), first_a, num_steps=3, max_tokens=1, stop=None, aggregate=aggregate
    )
    together = {
        "product": np.sum, "last": lambda g: g[-1], "min": np.min, "max": np.max, "mean": np.mean
    }[aggregate]  # fmt: skip
    wanted = {}
    for text, p in law(model, 3).items():
        shares = [text[: n + 1].count(A) / 3 for n in range(len(text))]
        wanted[text] = p * np.exp(together(np.log([0.2 + 0.6 * s for s in shares])))
    found = {}
    for answer, mass in _points(task.program):
        text = tuple(np.asarray(answer.text.tokens)[: int(answer.text.length)].tolist())
        found[text] = found.get(text, 0.0) + mass
        ratio = np.log(mass) - np.log(law(model, 3)[text])
        assert ratio == pytest.approx(float(answer.log_potential), abs=1e-10)
    same(found, wanted)


METHODS = {
    "importance": lambda p: ppl.importance(p, 2),
    "smc": lambda p: ppl.smc(p, 2),
    "smc, always, multinomial": lambda p: ppl.smc(p, 2, resample="multinomial", ess_threshold=1.0),
}


@pytest.mark.parametrize("method", METHODS)
def test_population_methods_keep_the_target(method):
    task = lm.reasoning(table(21).prompt(room=3), first_a, num_steps=3, max_tokens=1, stop=None)
    report = ppl.check.preserves(METHODS[method], task.program)
    assert report.passed, report


def test_particle_gibbs_keeps_the_target():
    task = lm.reasoning(table(22).prompt(room=2), first_a, num_steps=2, max_tokens=1, stop=None)
    kernel = ppl.kernels.conditional_smc(num_particles=2)
    report = ppl.check.invariant(kernel, task.program)
    assert report.passed, report


def test_the_best_particle_is_biased_and_the_check_finds_it():
    task = lm.reasoning(table(23).prompt(room=2), first_a, num_steps=2, max_tokens=1, stop=None)
    report = ppl.check.preserves(lambda p: lm.best(ppl.importance(p, 3)), task.program)
    assert not report.passed


def test_the_best_of_n_has_the_law_of_the_best_of_n():
    """Of n independent runs with scores of law F, the best has F^n - (F before)^n."""
    model, n = table(23), 3

    @ppl.model
    def program(model):
        text, _ = lm.step("step", model.prompt(), max_tokens=1)
        score = jnp.array([0.3, 0.1, 0.7, 0.2, 0.5])[text.tokens[0]]
        ppl.factor("score", jnp.log(score))
        return text

    found = enumerated(lm.best(ppl.importance(program(model), n)))
    p = {t[0]: m for t, m in law(model, 1).items()}
    below, wanted = 0.0, {}
    for token in (B, LINE, A, END, AB):  # by score
        wanted[token,] = (below + p[token]) ** n - below**n
        below += p[token]
    same(found, wanted)


def test_votes():
    task = lm.reasoning(table(24).prompt(room=2), first_a, num_steps=2, max_tokens=1, stop=None)
    population = ppl.run(ppl.smc(task.program, 8), 0)
    shares = lm.vote(population)
    assert sum(shares.values()) == pytest.approx(1.0)
    texts = population.values.text.decode()
    for text, share in shares.items():
        own = [w for t, w in zip(texts, population.weights, strict=True) if t == text]
        assert share == pytest.approx(float(sum(own)))
    alike = lm.vote(population, len, weighted=False)
    assert alike == {
        n: pytest.approx(sum(len(t) == n for t in texts) / 8) for n in {len(t) for t in texts}
    }


def test_twists_of_zero_lose_a_run_and_make_no_weight_a_nan():
    task = lm.reasoning(table(31).prompt(room=3), first_a, num_steps=3, max_tokens=1, stop=None)

    def start(context):
        return jnp.where(context.tokens[0] == A, 0.3, -jnp.inf)

    def texts(program):
        return {
            tuple(np.asarray(a.text.tokens)[: int(a.text.length)].tolist()): m
            for a, m in _points(program)
        }

    plain = texts(task.program)
    wanted = {t: m for t, m in plain.items() if t[0] == A or t == (END,)}
    same(texts(task.twisted(start).program), wanted)


def test_a_reasoning_whose_text_has_to_match_weighs_nothing_where_it_does_not():
    model = table(32)
    task = lm.reasoning(
        model.prompt(room=4, mask="ab?\\n"), lambda c: 0.5, num_steps=2, max_tokens=1, stop=None
    )
    found = {
        tuple(np.asarray(a.text.tokens)[: int(a.text.length)].tolist()): m
        for a, m in _points(task.program)
    }
    p = law(model, 2)
    assert found.keys() == {(A, LINE)} | {(AB, LINE)}
    same(found, {t: 0.25 * p[t] for t in found})
    report = ppl.check.preserves(lambda _: lm.steer(task, 2, 2), task.program)
    assert report.passed, report


@pytest.mark.parametrize("score", [-0.1, np.nan])
def test_a_score_that_is_no_probability_is_seen(score):
    task = lm.reasoning(
        table(33).prompt(room=1), lambda c: jnp.asarray(score), num_steps=1, max_tokens=1, stop=None
    )
    population = ppl.run(ppl.importance(task.program, 3), 0)
    with pytest.raises(ResultError, match="NaN"):
        lm.vote(population)


def test_nobody_votes_where_no_text_is_possible():
    task = lm.reasoning(
        table(34).prompt(room=1), lambda c: jnp.zeros(()), num_steps=1, max_tokens=1, stop=None
    )
    population = ppl.run(ppl.importance(task.program, 3), 0)
    with pytest.raises(ResultError, match="vote got a population in which every particle"):
        lm.vote(population)
    assert sum(lm.vote(population, weighted=False).values()) == pytest.approx(1.0)


# --- Judges -------------------------------------------------------------------------------------


def judged(judge, length=2):
    task = lm.reasoning(
        table(28).prompt(room=length), judge, num_steps=length, max_tokens=1, stop=None
    )
    return task.program


def test_a_judge_is_asked_once_for_each_text():
    asked = []

    def score(text):
        asked.append(text)
        return 0.1 + 0.2 * text.count("a")

    judge = lm.judge(score)
    population = ppl.run(ppl.smc(judged(judge), 16), 0)
    assert judge.calls == len(asked) == len(set(asked))
    assert set(population.values.text.decode()) <= set(asked)
    last = population.values.scores[:, -1]
    wanted = [0.1 + 0.2 * t.count("a") for t in population.values.text.decode()]
    np.testing.assert_allclose(last, wanted)


def test_a_judge_of_many_texts_says_the_same():
    single = lm.judge(lambda text: 0.1 + len(text) / 10)
    batched = lm.judge(lambda texts: [0.1 + len(t) / 10 for t in texts], many=True)
    a, b = (ppl.enumerate(judged(j)) for j in (single, batched))
    assert a.total_variation(b) < 1e-12


@pytest.mark.parametrize("many", [False, True])
def test_a_judge_that_fails_is_named(many):
    wrong = lm.judge(
        (lambda ts: [float("nan")] * len(ts)) if many else lambda t: float("nan"), many=many
    )
    with pytest.raises(ResultError, match="gave NaN"):
        ppl.run(ppl.smc(judged(wrong), 4), 0)
    with pytest.raises(ResultError, match="gave NaN"):
        ppl.enumerate(judged(wrong))
    short = lm.judge(lambda texts: [0.5], many=True)
    with pytest.raises(ResultError, match="one number for each"):
        ppl.run(ppl.smc(judged(short), 16), 0)
    with pytest.raises(ArgumentError, match="function of strings"):
        lm.judge(3)
    with pytest.raises(ArgumentError, match="texts, or contexts"):
        lm.judge(len)(3)
