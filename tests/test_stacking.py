"""Draws for many lanes at once, exactly: the values of the batched distribution, one call for bits.

Laws and independence, where the values differ: `tests/test_stacking_laws.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution

import ppl
import ppl.distributions as dist
from ppl import _jax
from ppl.stacking import stacked

KEY = jax.random.key(20)


def equations(jaxpr: _jax.Jaxpr) -> Iterator[_jax.JaxprEqn]:
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in _jax.subjaxprs(eqn):
            yield from equations(inner)


def row(make: Callable[..., Distribution], *params: Any) -> ppl.Program:
    """One site in a `vmap` over the leading axis of every parameter."""

    @ppl.model
    def model(*params):
        return jax.vmap(lambda *p: ppl.sample("x", make(*p)))(*params)

    return model(*params)


# --- Exact: the draws of the batched distribution -----------------------------------------------

positive = jnp.exp(jax.random.normal(jax.random.key(1), (3, 3)))
matrices = jnp.linalg.cholesky(
    jax.vmap(jnp.diag)(positive) + 0.5 * positive[:, :, None] * positive[:, None, :]
)
BATCHED: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "Normal": (dist.Normal, (positive[0], positive[1])),
    "Normal, own batch": (dist.Normal, (positive, positive)),
    "Laplace": (dist.Laplace, (positive[0], positive[1])),
    "Uniform": (lambda a: dist.Uniform(a, a + 1.0), (positive[0],)),
    "Exponential": (dist.Exponential, (positive[0],)),
    "Gumbel": (dist.Gumbel, (positive[0], positive[1])),
    "HalfNormal": (dist.HalfNormal, (positive[0],)),
    "LogNormal": (dist.LogNormal, (positive[0], positive[1])),
    "Bernoulli": (lambda a: dist.Bernoulli(probs=a), (positive[0] / 9,)),
    "Bernoulli of logits": (lambda a: dist.Bernoulli(logits=a), (positive[0],)),
    "Categorical of as many as lanes": (lambda a: dist.Categorical(logits=a), (positive,)),
    "Categorical of probs": (
        lambda a: dist.Categorical(probs=a),
        (positive / positive.sum(-1, keepdims=True),),
    ),
    "MultivariateNormal": (
        lambda a, b: dist.MultivariateNormal(a, scale_tril=b),
        (positive, matrices),
    ),
    "to_event": (lambda a: dist.Normal(a, 1.0).to_event(1), (positive,)),
    "masked": (lambda a: dist.Normal(a, 1.0).mask(False), (positive[0],)),
}


def test_lanes_draw_as_the_batched_distribution() -> None:
    @jax.jit
    def both(key):
        sampler = lambda make: lambda key, leaves: make(*leaves).sample(key)  # noqa: E731
        return {
            name: (
                stacked(sampler(make), (3,), key, params, [(True,) * len(params)]),
                make(*params).sample(key),
            )
            for name, (make, params) in BATCHED.items()
        }

    for name, (value, expected) in both(KEY).items():
        assert value.dtype == expected.dtype, name
        np.testing.assert_array_max_ulp(*map(np.asarray, (value, expected)), maxulp=8)


def test_every_way_of_mapping_two_parameters() -> None:
    sampler = lambda key, leaves: dist.Normal(*leaves).sample(key)  # noqa: E731
    ways = [(True, True), (True, False), (False, True)]

    def both(key):
        for depth in (1, 2, 3):
            sizes = (2, 3, 2)[:depth]
            noise = jax.random.normal(key, (*sizes, 4))
            last = ways if depth < 3 else ways[1:2]  # which tells the parameters apart already
            for flags in itertools.product(*[ways] * (depth - 1), last):
                levels = [*zip(sizes, flags, strict=True)]
                shapes = [[s for s, f in levels if f[i]] for i in (0, 1)]
                loc = jax.random.normal(jax.random.key(1), (*shapes[0], 4))
                scale = 1.0 + jax.random.uniform(jax.random.key(2), (*shapes[1], 1))
                value = stacked(sampler, sizes, key, [loc, scale], flags)
                full = [
                    x.reshape(*(s if f[i] else 1 for s, f in levels), -1)
                    for i, x in enumerate((loc, scale))
                ]
                yield value, full[0] + full[1] * noise

    for value, expected in jax.jit(lambda key: list(both(key)))(KEY):
        assert value.shape == expected.shape
        np.testing.assert_array_max_ulp(*map(np.asarray, (value, expected)), maxulp=8)


def test_free_levels_stand_where_they_stood() -> None:
    size = {0: 2, 1: 3, 2: 4}
    for mapped in ((1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 0, 0)):
        loc = 1.0 + jnp.arange(24.0).reshape(2, 3, 4)
        loc = loc[tuple(slice(None) if m else 0 for m in mapped)]

        @ppl.model
        def model(loc, scale, mapped=mapped):
            def lane(loc):
                return ppl.sample("x", dist.Normal(loc, scale).expand([5]))

            for level in reversed(range(3)):
                lane = jax.vmap(lane, in_axes=0 if mapped[level] else None, axis_size=size[level])
            return lane(loc)

        where = jnp.reshape(loc, [size[i] if m else 1 for i, m in enumerate(mapped)] + [1])
        still = ppl.run(model(loc, jnp.float32(1e-30)), KEY)
        np.testing.assert_array_equal(still, jnp.broadcast_to(where, (2, 3, 4, 5)))
        noise = ppl.run(model(0.0 * loc, jnp.float32(1.0)), KEY)
        assert len(np.unique(noise)) == 2 * 3 * 4 * 5  # every element is drawn for itself


def test_a_thousand_normal_lanes_make_one_call_for_bits() -> None:
    program = row(dist.Normal, jnp.arange(1000.0), jnp.ones(1000))
    jaxpr = jax.make_jaxpr(lambda key: ppl.run(program, key))(KEY).jaxpr
    names = [eqn.primitive.name for eqn in equations(jaxpr)]
    assert names.count("random_bits") == 1
    assert "random_split" not in names
    bits = next(e for e in equations(jaxpr) if e.primitive.name == "random_bits")
    assert bits.params["shape"] == (1000,)


def test_a_level_without_lanes_draws_nothing() -> None:
    program = row(dist.Normal, jnp.zeros(0), jnp.ones(0))
    assert ppl.run(program, KEY).shape == (0,)
    assert ppl.run(row(dist.Gamma, jnp.zeros(0), jnp.ones(0)), KEY).shape == (0,)


def test_a_value_that_is_not_random_fills_the_lanes() -> None:
    sampler = lambda key, leaves: leaves[0]  # noqa: E731
    value = stacked(sampler, (2, 3), KEY, [jnp.arange(3.0)], [(False,), (True,)])
    np.testing.assert_array_equal(value, [[0.0, 1.0, 2.0]] * 2)


def test_a_key_of_the_sampler_s_own_is_the_same_in_every_lane() -> None:
    def sampler(key, leaves):
        return jax.random.uniform(jax.random.key(7)) + leaves[0] * jax.random.uniform(key)

    value = stacked(sampler, (3,), KEY, [jnp.zeros(3)], [(True,)])
    np.testing.assert_array_equal(value, jnp.full(3, jax.random.uniform(jax.random.key(7))))
