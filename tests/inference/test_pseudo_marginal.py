"""Evidence inside programs: the pseudo-marginal form of a program, and its kernel. All exact."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.errors import UnsupportedError
from ppl.inference.particle_marginal import Given, Point, move
from ppl.inference.pmmh_kernel import pmmh as kernel
from ppl.inference.pseudo_marginal import _Pushing, as_parameters, prior, pseudo_marginal
from ppl.inference.smc import smc
from tests.laws import continuations, digest, law, tiny

DATA = np.array([1, 0])


def switching(y, p=0.4):
    """A two-state chain whose switching depends on a bit."""
    a = ppl.sample("a", dist.Bernoulli(p))

    def step(x, y):
        x = ppl.sample("x", dist.Bernoulli(jnp.where(x == 1, 0.7, 0.2) + 0.2 * a))
        ppl.sample("y", dist.Bernoulli(0.1 + 0.7 * x), obs=y)
        return x, x

    _, xs = jax.lax.scan(step, 0, y)
    return a, xs


hmm = ppl.model(switching)


@ppl.model
def flip(now):
    """Leaves 0 more often than 1: the two densities of a move differ."""
    ppl.sample("a", dist.Bernoulli(jnp.where(now["a"] == 1, 0.3, 0.9)))


def exactly(report):
    assert report.false_alarm == 0
    return report


# --- The pseudo-marginal form -------------------------------------------------------------------


@ppl.model
def with_parameters(p, f):
    """Two bits, a random program, and something that depends on all of them."""
    a = ppl.sample("a", dist.Bernoulli(0.4))
    b = ppl.sample("b", dist.Bernoulli(jnp.where(a == 1, 0.0, 0.7)))
    ppl.factor("f", -0.3 * b)
    with ppl.scope("first"):
        x = p()
    with ppl.scope("then"):
        return a, b, f((digest(x) + a + b) % 3)


@pytest.mark.usefixtures("x64")
@hypothesis.settings(law, max_examples=25)
@hypothesis.given(tiny, continuations, st.sampled_from([1, 2]), st.sampled_from([0.5, 1.0]))
def test_the_measure_stays(program, f, count, threshold):
    def transformed(p):
        return pseudo_marginal(p, ["a", "b"], count, "multinomial", threshold)

    exactly(ppl.check.preserves(transformed, with_parameters(program, f))).require()


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_measure_stays_whatever_is_a_parameter():
    """The parameters are those among the program's own sites that can be."""
    found = [0]

    @law
    @hypothesis.given(tiny)
    def run(program):
        names: tuple[str, ...] = ()
        for address in program.latents:
            try:
                names = as_parameters("test", program, (*names, address))
            except UnsupportedError:
                continue
        found[0] += bool(names)
        one = exactly(ppl.check.preserves(lambda p: pseudo_marginal(p, names, 2), program))
        one.require()
        every = lambda p: pseudo_marginal(p, names, 2, collapse=False)  # noqa: E731
        exactly(ppl.check.preserves(every, program)).require()

    run()
    assert found[0] > 25


@pytest.mark.usefixtures("x64")
def test_forms_nest_and_are_cut_where_the_program_is():
    nested = lambda p: pseudo_marginal(pseudo_marginal(p, ["a"], 2), ["a"], 1)  # noqa: E731
    exactly(ppl.check.preserves(nested, hmm(DATA))).require()
    squared = lambda p: smc(pseudo_marginal(p, ["a"], 2), 2)  # noqa: E731
    exactly(ppl.check.preserves(squared, hmm(DATA))).require()
    # One resampling of parameters in front of each iteration: the scores stand inside of the loop.
    steps = ppl.run(squared(hmm(DATA)), key=0).steps
    assert steps["ess"].shape == (2,)


@pytest.mark.usefixtures("x64")
def test_what_is_scored_is_an_unbiased_estimate():
    q = ppl.weighted(ppl.do(pseudo_marginal(hmm(DATA), ["a"], 2), {"a": 1}))

    @ppl.model
    def evidence():
        return jnp.exp(q().log_weight)

    exact = ppl.enumerate(ppl.do(hmm(DATA), {"a": 1})).total_mass
    exactly(ppl.check.unbiased(evidence(), exact)).require()


def unscored(self, run, place, cloud):
    """Forget the evidence."""
    return cloud


def scored_twice(self, run, place, cloud):
    """Score the evidence, and leave it in the weights."""
    after(self, run, place, cloud)
    return cloud


after = _Pushing.after


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("wrong", [after, unscored, scored_twice])
def test_forms_that_lose_or_repeat_the_evidence_are_rejected(monkeypatch, wrong):
    monkeypatch.setattr(_Pushing, "after", wrong)
    fresh = ppl.model(lambda y: switching(y))  # staged with what is patched
    report = exactly(ppl.check.preserves(lambda p: pseudo_marginal(p, ["a"], 2), fresh(DATA)))
    assert report.passed == (wrong is after)


# --- The kernel ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("x64")
def test_the_kernel_leaves_the_extended_measure_invariant():
    program = pseudo_marginal(hmm(DATA), ["a"], 2, ess_threshold=1.0)
    exactly(ppl.check.invariant(kernel(["a"], flip), program)).require()
    # With one particle, no filter: it is right for any program.
    exactly(ppl.check.reversible(kernel("a", flip), hmm(DATA))).require()
    scaled = ppl.scale(hmm(DATA), 1.5, ["a"])
    exactly(ppl.check.invariant(kernel("a", flip), scaled)).require()


class Symmetric(Given):
    """A proposal that forgets its ratio."""

    def propose(self, position, root):
        return super().propose(position, root)[0], 0.0


def mutant(*, space=Given, anew=False, keep=False):
    @ppl.kernel
    def moved(trace):
        program = trace.program
        theirs = prior(program, ("a",))

        def rerun(parameters):
            run = ppl.traced(ppl.do(program, parameters))()
            return run.log_weight, run.choices

        old = {"a": trace.choices["a"]}
        held = {k: x for k, x in trace.choices.items() if k not in old}
        log_evidence = trace.log_weight
        if anew:
            with ppl.scope("anew"):
                log_evidence, _ = rerun(old)
        point, _ = move(space(theirs, flip), rerun, Point(old, log_evidence, held), None)
        return trace.with_choices({**(held if keep else point.held), **point.position})

    return moved


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("wrong", "options"),
    [
        ("nothing", {}),
        ("the proposal's ratio is forgotten", {"space": Symmetric}),
        ("the current estimate is made anew", {"anew": True}),
        ("the estimate stays as it was", {"keep": True}),
    ],
)
def test_mutants_are_rejected(wrong, options):
    report = exactly(ppl.check.invariant(mutant(**options), pseudo_marginal(hmm(DATA[:1]), "a", 2)))
    assert report.passed == (wrong == "nothing")


@pytest.mark.usefixtures("x64")
def test_impossible_proposals_are_rejected_without_being_run():
    @ppl.model
    def rooted():
        a = ppl.sample("a", dist.Bernoulli(0.4))
        x = ppl.sample("x", dist.Bernoulli(0.2 + 0.5 * jnp.sqrt(1.0 - a)))  # NaN at 2
        ppl.factor("f", -0.5 * x * jnp.sqrt(1.0 - a))
        return a, x

    @ppl.model
    def outward(now):
        ppl.sample("a", dist.DiscreteUniform(0, 2))

    exactly(ppl.check.invariant(kernel("a", outward), pseudo_marginal(rooted(), "a", 2))).require()
