"""How far ahead ancestor sampling looks: no further than the past can change anything."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import ppl
from ppl.inference.conditional import Conditional, ConditionalSMC
from ppl.inference.particles.onward import rest_of
from tests.inference import particle_models as models
from tests.inference.particle_models import B, p, sample


class _Looking(Conditional):
    def joined(self, run, place, cloud):
        rest = rest_of("test", place)
        SEEN.append((rest.steps, rest.after is not None))
        return super().joined(run, place, cloud)


class _Look(ConditionalSMC):
    def strategy(self, prefix):
        return _Looking(self.ess_threshold, True, prefix)


SEEN = []


@ppl.model
def forgetting(y):
    """The state is carried with a sum that only the result reads."""

    def step(carry, y):
        x, total = carry
        x = sample("x", B(p(0.2, 0.6)[x]))
        models.observe(y, p(0.2, 0.7)[x])
        return (x, total + x), x

    (x, total), xs = lax.scan(step, (0, 0), y)
    ppl.deterministic("all", xs)
    return total, sample("z", B(p(0.2, 0.6)[x]))


@ppl.model
def branched(y):
    """The next state is drawn in one of two branches, or in a loop."""

    def step(x, y):
        draw = lambda q: lambda: sample("x", B(q))  # noqa: E731
        x = lax.cond(x == 1, draw(0.7), draw(0.2))
        w, _ = lax.scan(lambda _, x: (sample("w", B(p(0.2, 0.6)[x])),) * 2, 0, jnp.stack([x, x]))
        models.observe(y, p(0.2, 0.7)[w])
        return w, x

    return lax.scan(step, 0, y)[1]


@pytest.mark.parametrize(
    ("model", "steps", "after"),
    [
        (models.hidden_markov, 0, False),
        (models.second_order, 1, False),
        (models.parameter, 8, False),
        (models.counting, 8, True),
        (forgetting, 0, False),
        (branched, 0, False),
    ],
)
def test_only_what_the_past_can_change_is_looked_at(model, steps, after):
    SEEN.clear()
    trace = ppl.trace(model(jnp.zeros(9, int)), jax.random.key(0))
    _ = _Look(2, None, 1.0, True, False).program(trace)
    assert SEEN[0] == (steps, after)
