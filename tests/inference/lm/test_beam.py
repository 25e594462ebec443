"""Beams, groups of them, and REBASE: exact laws, and that they are biased."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl.errors import ArgumentError
from ppl.inference.lm.beam import allocate, beam, dvts, rebase
from tests.inference.lm.tables import probabilities
from tests.inference.lm.tasks import WORDS, only, share, strict, task

pytestmark = pytest.mark.usefixtures("x64")
END = WORDS.end


def texts(population):
    """The texts of all particles, in order, with the end where nothing stands."""
    return population.values.text.tokens


def score(text):
    said = [t for t in text if t is not None]
    return 0.1 + 0.8 * said.count(0) / max(len(said), 1)


def strict_score(text):
    return 0.0 if (1, 1) in itertools.pairwise(text) else score(text)


def beams(model, steps, width, expand, score=score):
    """The law of the texts that a beam keeps, in order, by listing all that can be drawn."""
    start = tuple(((), 0.0) for _ in range(width))
    laws = {start: 1.0}
    for _ in range(steps):
        after = {}
        for kept, mass in laws.items():
            parents = [run for run in kept for _ in range(expand)]
            choices = [
                [(None, 1.0)] if END in text else list(enumerate(probabilities(model, text)))
                for text, _ in parents
            ]
            for draw in itertools.product(*choices):
                runs = []
                for (text, potential), (token, _) in zip(parents, draw, strict=True):
                    if token is None:
                        runs.append((text, potential))
                    else:
                        new = (*text, token)
                        with np.errstate(divide="ignore"):
                            runs.append((new, potential + float(np.log(score(new)))))
                best = tuple(sorted(runs, key=lambda run: -round(run[1], 12))[:width])
                p = mass * np.prod([p for _, p in draw])
                after[best] = after.get(best, 0.0) + p
        laws = after
    return {tuple(text for text, _ in kept): mass for kept, mass in laws.items()}


def enumerated(program):
    """The law of all particles' texts, in order."""
    found = {}
    measure = ppl.enumerate(program).pushforward(
        lambda p: (p.values.text.tokens, p.values.text.length)
    )
    for (tokens, lengths), mass in measure:
        rows = zip(tokens, lengths, strict=True)
        key = tuple(tuple(row[:n].tolist()) for row, n in rows)
        found[key] = found.get(key, 0.0) + mass
    return found


@pytest.mark.parametrize(("width", "expand"), [(1, 2), (2, 1), (2, 2), (1, 4)])
def test_a_beam_has_the_law_of_what_it_does(width, expand):
    # In order of the runs, so that the rule for ties counts too.
    of = task(2)
    found, wanted = enumerated(beam(of, width, expand)), beams(of.context.lm, 2, width, expand)
    assert sum(wanted.values()) == pytest.approx(1, abs=1e-12)
    for key in {*found, *wanted}:
        assert abs(found.get(key, 0.0) - wanted.get(key, 0.0)) < 1e-12, key


def test_one_step_is_best_of_n():
    of, expand = task(1, key=2), 5
    measure = ppl.enumerate(ppl.lm.best(beam(of, 1, expand)))
    p = probabilities(of.context.lm, ())
    potential = np.log([score((token,)) for token in range(3)])
    for answer, mass in measure.pushforward(lambda a: a.log_potential):
        below, at = (p[potential <= answer + 1e-9].sum(), p[potential < answer - 1e-9].sum())
        assert mass == pytest.approx(below**expand - at**expand, abs=1e-12)


def test_groups_know_nothing_of_one_another():
    of = task(2, key=1)
    alone = enumerated(beam(of, 1, 2))
    for program in (beam(of, 1, 2, num_groups=2), dvts(of, 2, 2)):
        both = enumerated(program)
        assert len(both) == len(alone) ** 2
        for (one, other), mass in both.items():
            assert mass == pytest.approx(alone[(one,)] * alone[(other,)], abs=1e-12)


@pytest.mark.parametrize(
    "search",
    [lambda t: beam(t, 2, 2), lambda t: dvts(t, 2, 2), lambda t: rebase(t, 3)],
    ids=["beam", "dvts", "rebase"],
)
def test_searches_are_biased(search):
    of = task(3)
    assert not ppl.check.preserves(lambda _: search(of), of.program)
    # Not for the evidence alone: the answers have another law.
    wanted = ppl.enumerate(of.program).normalize()
    found = ppl.enumerate(ppl.extract(search(of))).normalize()
    assert found.total_variation(wanted) > 0.1


def test_a_beam_that_keeps_everything_is_unbiased():
    of = task(2)
    assert ppl.check.preserves(lambda _: beam(of, 2, 1), of.program)


def test_lost_runs_are_dropped():
    of = task(2, verifier=strict)
    found = enumerated(beam(of, 1, 3))
    wanted = beams(of.context.lm, 2, 1, 3, strict_score)
    for key in {*found, *wanted}:
        assert abs(found.get(key, 0.0) - wanted.get(key, 0.0)) < 1e-12, key
    nothing = ppl.enumerate(beam(task(2, verifier=lambda c: 0.0 * c.length), 2, 1))
    assert all(p.log_evidence == -np.inf for p, _ in nothing)


def test_rebase_divides_as_published():
    scores = np.array([0.9, 0.8, 0.3, 0.1]) / 0.2
    shares = 16 * np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(shares, [9.55, 5.79, 0.48, 0.17], atol=0.0065)  # as printed

    def divided(shares, width):
        return only(
            ppl.model(functools.partial(allocate, width=width))(jnp.asarray(shares))
        ).tolist()

    assert divided(scores, 16) == [10, 6, 0, 0]
    assert divided(scores[[2, 0, 3, 1]], 16) == [0, 10, 0, 6]
    assert divided(np.zeros(4), 8) == [2, 2, 2, 2]  # a rounding is no remainder
    assert divided(np.zeros(3), 4) == [2, 1, 1]
    assert divided(np.full(4, -np.inf), 4) == [1, 1, 1, 1]
    assert divided(np.array([-np.inf, 0.0]), 3) == [0, 3]


def test_rebase_has_the_law_of_what_it_does():
    # Two runs of one step; then each is continued as often as its score says.
    of = task(2)
    wanted = {}
    model = of.context.lm
    first = probabilities(model, ())
    for one, other in itertools.product(range(3), repeat=2):
        scores = np.array([score((one,)), score((other,))])
        shares = np.exp(scores / 0.2) / np.exp(scores / 0.2).sum()
        lead = int(np.argmax(shares))
        copies = [0, 0]
        copies[lead] = int(np.ceil(2 * shares[lead] - 1e-9))
        copies[1 - lead] = 2 - copies[lead]
        parents = [(one,)] * copies[0] + [(other,)] * copies[1]
        for draw in itertools.product(range(3), repeat=2):
            mass, key = first[one] * first[other], []
            for parent, token in zip(parents, draw, strict=True):
                over = parent == (END,)
                mass *= (token == 0) if over else probabilities(model, parent)[token]
                key.append(parent if over else (*parent, token))
            wanted[tuple(key)] = wanted.get(tuple(key), 0.0) + mass
    found = enumerated(rebase(of, 2))
    for key in {*found, *wanted}:
        assert abs(found.get(key, 0.0) - wanted.get(key, 0.0)) < 1e-12, key


def test_what_a_run_shows():
    for found, _ in ppl.enumerate(beam(task(2), 1, 2, num_groups=2)):
        assert found.num_particles == 2
        assert found.values.scores.shape == (2, 2)
        mean = np.log(np.mean(np.exp(found.log_weights)))
        np.testing.assert_allclose(found.log_evidence, mean, rtol=1e-12)
        np.testing.assert_array_equal(found.log_weights, found.values.log_potential)
        assert found.families is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: beam(task(2).program, 2, 2), "Reasoning task"),
        (lambda: beam(task(2), 0, 2), "width"),
        (lambda: dvts(task(2), 2, 0), "expand"),
        (lambda: rebase(task(2), 2, temperature=0.0), "positive"),
    ],
)
def test_refusals(make, said):
    with pytest.raises(ArgumentError, match=said):
        make()


def test_the_score_of_the_reference_is_the_verifiers():
    for answer, _ in ppl.enumerate(task(2, verifier=share).program):
        text = tuple(answer.text.tokens[: int(answer.text.length)].tolist())
        assert answer.scores[-1] == pytest.approx(score(text), abs=1e-12)
