"""What searches share: the single step, and what all runs hold in common."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl.errors import ArgumentError
from ppl.inference.lm.a_star import a_star
from ppl.inference.lm.automaton import automaton
from ppl.inference.lm.backend import keep_where
from ppl.inference.lm.beam import beam
from ppl.inference.lm.frontier import Frontier
from ppl.inference.lm.steering import steer
from ppl.inference.lm.tempering import replicas, tempering
from ppl.inference.lm.tree import tree_sampling
from tests.inference.lm.tasks import WORDS, share, task

pytestmark = pytest.mark.usefixtures("x64")


class Prompted(ppl.lm.LanguageModel):
    """A model that reads a large prompt at every token, as caches are read."""

    vocabulary: ppl.lm.Vocabulary = eqx.field(static=True)

    def start(self, tokens, room):
        return {"prompt": jnp.linspace(0.0, 1.0, 997), "last": jnp.zeros((), int)}

    def logits(self, state):
        return jnp.arange(3) * jnp.sum(state["prompt"]) * (state["last"] + 1) / 1000

    def extend(self, state, token, active):
        last = keep_where(active, jnp.asarray(token, int), state["last"])
        return {"prompt": state["prompt"], "last": last}


@pytest.mark.parametrize(
    "search",
    [lambda t: steer(t, 4, 2), lambda t: tempering(t, 4)],
    ids=["steer", "tempering"],
)
def test_what_no_step_changes_is_held_once(search):
    context = Prompted(WORDS).prompt(room=3)
    program = search(ppl.lm.reasoning(context, share, num_steps=3, stop=None, max_tokens=1))
    # The program is an input, so that nothing is computed beforehand.
    run = jax.jit(lambda program, key: ppl.run(program, key)).lower(program, jax.random.key(0))
    shown = run.compile().as_text()
    assert set(re.findall(r"\[([\d,]*\b997\b[\d,]*)\]", shown)) == {"997"}


def test_a_lane_goes_the_way_of_the_task():
    of = task(3)

    @ppl.model
    def alone():
        frontier = Frontier(of)
        lane = frontier.start()
        lane, _ = jax.lax.scan(lambda lane, _: (frontier.advance(lane), None), lane, None, length=3)
        ppl.factor("all", lane.log_potential)
        return frontier.answer(lane)

    wanted, found = ppl.enumerate(of.program), ppl.enumerate(alone())
    assert found.total_variation(wanted) < 1e-14
    assert np.all([a.text.tokens.shape == (3,) for a in found.points])


MASKED = {
    "proposal": lambda: task(2, 1, proposal=lambda law: 0.3 * law),
    "mask of steps": lambda: task(2, 1, mask=automaton(np.array([[0, -1, -1]]), [True])),
    "mask of the text": lambda: ppl.lm.reasoning(
        ppl.lm.Table.random(WORDS, 1).prompt(room=2, mask=automaton(NO_BA, [True, True])),
        share,
        num_steps=2,
        stop=None,
        max_tokens=1,
    ),
}
#: "a" does not come after "b".
NO_BA = np.array([[0, 1, -1], [-1, 1, -1]])


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize(
    "search",
    [
        lambda t: steer(t, 2, 2),
        lambda t: beam(t, 2, 1),  # which drops nothing
        lambda t: tree_sampling(t, 2),  # which is two runs
    ],
    ids=["steer", "beam", "tree"],
)
def test_steps_that_weigh(kind, search):
    of = MASKED[kind]()
    assert ppl.enumerate(of.program).total_mass > 0
    ppl.check.preserves(lambda _: search(of), of.program).require()


def test_a_star_and_tempering_say_what_they_cannot_weigh():
    for of in (make() for make in MASKED.values()):
        for search in (
            lambda t: a_star(t, 2, continuations="all"),
            lambda t: tempering(t, 2),
            replicas,
        ):
            with pytest.raises(ArgumentError, match="mask or a proposal"):
                search(of)
        found = ppl.enumerate(a_star(of, 4, expand=2)).points
        assert {round(float(p.log_evidence), 9) for p in found} <= _weights(of)


def _weights(of):
    """The log weights that a run of the task can have."""
    found = ppl.enumerate(ppl.weighted(of.program)).points
    return {round(float(w.log_weight), 9) for w in found}
