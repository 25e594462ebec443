"""Where programs are cut, and what their particles have in common."""

import jax
import jax.numpy as jnp

import ppl
import ppl.distributions as dist
from ppl.semantics.cuts import Loop, Piece, cut


@ppl.model
def model(y, noise):
    scale = jnp.exp(noise)
    rate = ppl.sample("rate", dist.Normal(0.0, 1.0))
    ppl.sample("first", dist.Normal(rate, scale), obs=0.5)
    ppl.factor("tilt", -rate)
    x = ppl.sample("x", dist.Normal(rate, 1.0))

    def step(state, y):
        x, t = state
        x = ppl.sample("z", dist.Normal(rate * x, 1.0))
        ppl.sample("y", dist.Normal(x, scale), obs=y)
        return (x, t + 1), (x, t)

    (x, t), (_, ts) = jax.jit(lambda y: jax.lax.scan(step, (x, 0), y))(y)
    return x, t, ts


def test_pieces_end_where_a_draw_follows_a_score():
    _, region = cut(model(jnp.zeros(3), 0.0))
    kinds = [(type(p), p.draws, p.scores) for p in region.parts]
    assert kinds == [
        (Piece, True, True),  # rate; first and tilt
        (Piece, True, False),  # x
        (Loop, True, True),
        (Piece, False, False),
    ]
    (inside,) = [p for p in region.parts[2].body.parts if p.draws]
    assert inside.scores


def test_what_does_not_depend_on_draws_is_common():
    program, region = cut(model(jnp.zeros(3), 0.0))
    first, _, loop, _ = region.parts
    assert [e.primitive.name for e in first.shared].count("exp") == 1
    n, m = loop.sizes
    flags = [v in loop.body.random for v in loop.body.jaxpr.invars]
    # The state differs, the counter does not; rate does, and the scale and the data do not.
    assert flags[n : n + m] == [True, False]
    assert sum(flags[:n]) == 1
    assert not any(flags[n + m :])
    # Of what the loop stacks, only the counter is read, and that is common.
    assert loop.outputs == ()
    assert [v in region.random for v in region.jaxpr.outvars] == [True, False, False]
    assert program.latents == ("rate", "x", "z")


def test_shared_sites_are_common():
    _, region = cut(model(jnp.zeros(3), 0.0), ("rate",))
    assert [e.params["site"].address for e in region.parts[0].shared if "site" in e.params] == [
        "rate"
    ]
    assert not region.parts[0].draws
    loop = region.parts[2] if isinstance(region.parts[2], Loop) else region.parts[1]
    n, _ = loop.sizes
    assert not any(v in loop.body.random for v in loop.body.jaxpr.invars[:n])
