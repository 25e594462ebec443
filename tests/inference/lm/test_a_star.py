"""A*: the most probable text with admissible heuristics, and the law of sampled continuations."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl.errors import ArgumentError
from ppl.inference.lm.a_star import a_star
from tests.inference.lm.tables import probabilities
from tests.inference.lm.tasks import WORDS, only, strict, task

pytestmark = pytest.mark.usefixtures("x64")
FOUR = ppl.lm.Vocabulary(["a", "b", "c", None])
END = WORDS.end


def said(text):
    return tuple(np.asarray(text.tokens)[: int(text.length)].tolist())


@pytest.mark.parametrize("key", range(4))
@pytest.mark.parametrize("verifier", [None, strict])
def test_all_continuations_find_the_most_probable_text(key, verifier):
    of = task(3, key, words=FOUR, **({} if verifier is None else {"verifier": verifier}))
    measure = ppl.enumerate(of.program)
    # 1 + 3 + 9 runs can be continued, and as many again that are over.
    found = only(a_star(of, 40, continuations="all"))
    assert said(found.values.text[0]) == said(measure.mode().text)
    assert float(found.log_evidence) == pytest.approx(measure.log_masses.max(), abs=1e-12)
    assert found.steps["found"]
    assert found.steps["expanded"] < 20  # and not by going everywhere


def best_ahead(of):
    """The exact heuristic, by enumeration: for each beginning, what the best way on adds."""
    model, steps = of.context.lm, of.num_steps
    table = np.full((4,) * steps, -np.inf)  # by tokens, 3 where there is none yet

    def value(text):
        p = 1.0
        for n, token in enumerate(text):
            p *= probabilities(model, text[:n])[token]
            p *= 0.1 + 0.8 * text[: n + 1].count(0) / (n + 1)
        return math.log(p)

    def best(text):
        if text and (text[-1] == END or len(text) == steps):
            gain = value(text)
        else:
            gain = max(best((*text, t)) for t in range(3))
        table[(*text, *[3] * (steps - len(text)))] = gain - value(text)
        return gain

    best(())
    return table


def test_the_better_the_heuristic_the_shorter_the_way():
    of = task(3, 2)
    table = best_ahead(of)

    def ahead(run):
        tokens = run.context.tokens
        known = jnp.where(jnp.arange(3) < run.context.length, tokens, 3)
        return jnp.asarray(table)[tuple(known)]

    mode = ppl.enumerate(of.program).mode()
    expanded = {}
    for name, heuristic in (
        ("exact", ahead),
        ("half", lambda run: 0.5 * ahead(run)),
        ("none", None),
    ):
        found = only(a_star(of, 30, continuations="all", heuristic=heuristic))
        assert said(found.values.text[0]) == said(mode.text)
        expanded[name] = int(found.steps["expanded"])
    assert expanded["exact"] == 3  # one for each step
    assert expanded["exact"] <= expanded["half"] <= expanded["none"]
    assert expanded["exact"] < expanded["none"]


def test_a_heuristic_that_promises_too_little_misses():
    # Not admissible: it forbids what the best text begins with.
    of = task(3, 2)
    first = said(ppl.enumerate(of.program).mode().text)[0]

    def wrong(run):
        return jnp.where((run.context.length > 0) & (run.context.tokens[0] == first), -50.0, 0.0)

    found = only(a_star(of, 30, continuations="all", heuristic=wrong))
    assert said(found.values.text[0])[0] != first


def score(text):
    return 0.1 + 0.8 * text.count(0) / len(text)


def searches(model, steps, expansions, expand):
    """The law of the answer with sampled continuations, by listing all that can be drawn."""

    def ways(text, count):
        if text and text[-1] == END:
            return [((text,), 1.0)]
        law = probabilities(model, text)
        return [
            (tuple((*text, t) for t in draw), math.prod(law[t] for t in draw))
            for draw in itertools.product(range(3), repeat=count)
        ]

    def potential(text):
        return round(sum(math.log(score(text[: n + 1])) for n in range(len(text))), 12)

    found = {}

    def finish(text, depth, mass):
        if depth == steps or (text and text[-1] == END):
            found[text] = found.get(text, 0.0) + mass
            return
        for (after,), p in ways(text, 1):
            finish(after, depth + 1, mass * p)

    def go(queue, left, mass):
        text, depth = max(queue, key=lambda run: potential(run[0]))  # the first of equal ones
        if depth == steps:
            finish(text, depth, mass)
        elif left == 0:
            whole = [run for run in queue if run[1] == steps] or queue
            finish(*max(whole, key=lambda run: potential(run[0])), mass)
        else:
            rest = list(queue)
            rest.remove((text, depth))
            for after, p in ways(text, expand):
                go([*rest, *[(t, depth + 1) for t in after]], left - 1, mass * p)

    go([((), 0)], expansions, 1.0)
    return found


@pytest.mark.parametrize(("expansions", "expand"), [(1, 3), (2, 2), (3, 2)])
def test_sampled_continuations_have_the_law_of_what_is_done(expansions, expand):
    of = task(2, 1)
    wanted = searches(of.context.lm, 2, expansions, expand)
    assert sum(wanted.values()) == pytest.approx(1, abs=1e-12)
    found = {}
    measure = ppl.enumerate(a_star(of, expansions, expand=expand))
    for population, mass in measure:
        key = said(population.values.text[0])
        found[key] = found.get(key, 0.0) + mass
    for text in {*found, *wanted}:
        assert abs(found.get(text, 0.0) - wanted.get(text, 0.0)) < 1e-12, text


def test_it_is_biased():
    of = task(2)
    assert not ppl.check.preserves(lambda _: a_star(of, 3, expand=2), of.program)
    wanted = ppl.enumerate(of.program).normalize()
    found = ppl.enumerate(ppl.extract(a_star(of, 3, expand=2))).normalize()
    assert found.total_variation(wanted) > 0.1


def test_all_lost():
    of = task(2, verifier=lambda c: 0.0 * c.length)
    for kind in ("all", "sample"):
        for found, _ in ppl.enumerate(a_star(of, 2, continuations=kind, expand=2)):
            assert found.log_evidence == -np.inf
            assert not found.steps["found"]


def test_budgets_that_end_first():
    for found, _ in ppl.enumerate(a_star(task(3), 1, expand=2)):
        assert not found.steps["found"]
        assert int(found.steps["expanded"]) == 1
        assert found.num_particles == 1
        assert found.values.scores.shape == (1, 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: a_star(task(2).program, 4), "Reasoning"),
        (lambda: a_star(task(2), 0), "num_expansions"),
        (lambda: a_star(task(2), 4, continuations="most"), "continuations"),
        (
            lambda: a_star(
                ppl.lm.reasoning(
                    ppl.lm.Table.random(WORDS).prompt(), strict, num_steps=2, max_tokens=2
                ),
                4,
                continuations="all",
            ),
            "one token",
        ),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ArgumentError, match=words):
        make()
